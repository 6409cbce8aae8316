"""Steps that are launched before the one before is read, and steps out of graphs: the same answers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labcore.errors import ConfigError
from labcore.model import Model
from labcore.serving import LLMEngine, PromptLookup, Request, captured
from labcore.serving.captured import DecodeGraphs, bucket_for
from labcore.serving.runner import ModelRunner
from tests.generation.pretended import Pretended
from tests.serving.helpers import Heard, alone, check, drain, empty, prompt, request, small_model, take

MODEL = small_model()
KINDS: list[dict[str, Any]] = [
    {}, {"temperature": 0.9}, {"temperature": 1.3, "top_p": 0.8}, {"repetition_penalty": 1.4},
    {"logprobs": 3}, {"ignore_eos": True},
]  # fmt: skip


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Graphs without a GPU: a replay fills its own output again. Lists the buckets that were recorded."""
    capture = Pretended()
    monkeypatch.setattr(captured, "capture", capture)
    return capture.made


def graphed(engine: LLMEngine, model: Model) -> LLMEngine:
    """The engine with (pretended) graphs."""
    assert engine.blocks.store is not None
    runner = engine.runner
    assert isinstance(runner, ModelRunner)
    places = engine.scheduler.limits.max_num_seqs
    runner.graphs = DecodeGraphs(model, engine.blocks.store, places, engine.max_model_len)
    return engine


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[int, Request, int | None]]:
    """(step of arrival, request, steps after which it is aborted)."""
    found: list[tuple[int, Request, int | None]] = []
    for index in range(draw(st.integers(1, 6))):
        length, kind = draw(st.integers(1, 12)), draw(st.sampled_from(KINDS))
        one = request(f"r{index}", prompt(length, index % 3), draw(st.integers(1, 9)), seed=index, **kind)
        found.append((draw(st.integers(0, 8)), one, draw(st.none() | st.integers(1, 6))))
    return found


@settings(max_examples=60, deadline=None)
@given(
    history=histories(),
    num_blocks=st.integers(6, 14),
    token_budget=st.integers(2, 24),
    max_num_seqs=st.integers(1, 4),
    chunked=st.booleans(),
    prefix_caching=st.booleans(),
    preemption=st.sampled_from(["recompute", "swap"]),
)
def test_answers_are_those_of_each_request_alone(
    history: list[tuple[int, Request, int | None]], **limits: Any
) -> None:
    engine = LLMEngine(MODEL, block_size=4, max_model_len=24, overlap=True, **limits)
    heard: dict[str, Heard] = {}
    gone: set[str] = set()
    for step in range(16):
        for arrives, one, leaves in history:
            if arrives == step:
                engine.add(one)
            if leaves is not None and arrives + leaves == step and engine.abort(one.id) is not None:
                gone.add(one.id)
        take(engine, 1, heard)
    drain(engine, heard=heard)
    empty(engine)
    for _, one, _ in history:
        told, true = heard.get(one.id, Heard()), alone(MODEL, one).tokens
        if one.id in gone:
            assert told.tokens == true[: len(told.tokens)]
            assert told.reason is None
        else:
            assert told.tokens == true
            assert len(told.logprobs) == (len(true) if one.logprobs is not None else 0)
    assert sum(event.drawn for event in engine.events) == engine.stats.output_tokens
    assert sum(len(one.tokens) for one in heard.values()) == engine.stats.output_tokens


def test_a_step_is_launched_before_the_one_before_is_read() -> None:
    engine = LLMEngine(MODEL, num_blocks=20, overlap=True)
    engine.add(request("a", prompt(3), 3, ignore_eos=True))
    assert engine.step() == []
    assert engine.last_event is None
    assert [output.num_output_tokens for output in engine.step()] == [1]
    assert engine.last_event is not None
    assert [row.kind for row in engine.last_event.rows] == ["prefill"]
    while engine.has_work:
        engine.step()
    times = [(event.start_s, event.end_s) for event in engine.events]
    assert len(times) == 3, "a step was launched for a request whose last token was under way"
    assert all(before[1] <= after[0] for before, after in zip(times, times[1:], strict=False))


def test_who_ends_by_its_text_costs_one_step_that_gives_nothing() -> None:
    """That a token is the end is known one step late; what was computed behind it is given to nobody."""
    one = next(
        made
        for seed in range(200)
        if alone(MODEL, made := request("a", prompt(4, seed), 9)).finish_reason == "eos"
        and 1 < len(alone(MODEL, made).tokens) < 9
    )
    engine = LLMEngine(MODEL, num_blocks=20, overlap=True)
    engine.add(one)
    told = drain(engine)["a"]
    assert told.tokens == alone(MODEL, one).tokens
    assert told.reason == "eos"
    assert [event.drawn for event in engine.events] == [1] * len(told.tokens) + [0]
    empty(engine)


@pytest.mark.parametrize("overlap", [False, True])
def test_graphs_give_the_same_answers(pretended: list[int], overlap: bool) -> None:
    engine = graphed(LLMEngine(MODEL, max_num_seqs=12, num_blocks=60, overlap=overlap), MODEL)
    some = [request(f"r{i}", prompt(3 + i, i), 4 + i, seed=i, **KINDS[i % len(KINDS)]) for i in range(12)]
    for one in some:
        engine.add(one)
    heard = drain(engine)
    for one in some:
        assert heard[one.id].tokens == alone(MODEL, one).tokens
    assert len(pretended) == len(set(pretended)), "a bucket was recorded twice"
    assert set(pretended) <= {1, 2, 4, 8, 16}
    check(engine)


def test_a_warm_engine_records_nothing_more(pretended: list[int]) -> None:
    engine = graphed(LLMEngine(MODEL, max_num_seqs=12, num_blocks=60), MODEL)
    engine.warm_up()
    assert pretended == [16, 8, 4, 2, 1], "the largest graph's memory has room for the others"
    some = [request(f"r{i}", prompt(3 + i, i), 4 + i) for i in range(12)]
    for one in some:
        engine.add(one)
    heard = drain(engine)
    assert len(pretended) == 5
    assert all(heard[one.id].tokens == alone(MODEL, one).tokens for one in some)


def test_rows_of_no_length_write_nothing(pretended: list[int]) -> None:
    """Three rows in a bucket of four: the fourth must not touch the pool."""
    engine = graphed(LLMEngine(MODEL, max_num_seqs=4, num_blocks=12, prefix_caching=False), MODEL)
    store = engine.blocks.store
    assert store is not None
    for index in range(3):
        engine.add(request(f"r{index}", prompt(5, index), 6, ignore_eos=True))
    engine.step()
    before = [layer.clone() for layer in store.layers]
    engine.step()
    assert pretended == [4]
    for layer, old in zip(store.layers, before, strict=True):
        assert int((layer != old).any(-1).any(0).any(0).sum()) == 3


def test_buckets_hold_what_is_put_into_them() -> None:
    assert [bucket_for(n) for n in (1, 2, 3, 5, 8, 9, 17, 64, 65, 96, 97, 256)] == [
        1, 2, 4, 8, 8, 16, 24, 64, 96, 96, 128, 256,
    ]  # fmt: skip
    assert all(bucket_for(n) >= n and bucket_for(bucket_for(n)) == bucket_for(n) for n in range(1, 300))


def test_overlap_needs_a_policy_that_decides_without_tokens() -> None:
    for policy, more in (("static", {}), ("continuous", {"speculation": PromptLookup()})):
        with pytest.raises(ConfigError, match="Steps cannot overlap"):
            LLMEngine(MODEL, policy, num_blocks=4, overlap=True, **more)


@pytest.mark.gpu
@pytest.mark.parametrize("overlap", [False, True])
def test_on_a_gpu(overlap: bool) -> None:
    """Mixed and captured steps with real graphs, in fp32: the tokens of each request alone on the CPU."""
    mine = small_model(heads=(4, 2))
    some = [request(f"r{i}", prompt(3 + 2 * i, i), 12, seed=i, **KINDS[i % len(KINDS)]) for i in range(20)]
    expected = [alone(mine, one).tokens for one in some]
    mine.transformer.to("cuda")
    engine = LLMEngine(mine, max_num_seqs=12, num_blocks=200, token_budget=40, overlap=overlap)
    assert isinstance(engine.runner, ModelRunner)
    assert engine.runner.graphs is not None
    for one in some:
        engine.add(one)
    heard = drain(engine)
    found = [heard[one.id].tokens for one in some]
    assert found == expected
    empty(engine)
