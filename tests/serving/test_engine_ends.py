"""How answers end, what is told of them, and that nothing stays behind, on tiny and on real weights."""

from __future__ import annotations

from typing import Any

import pytest

import labcore
from labcore.errors import CacheFull, OutOfMemory, PromptError, SamplingError
from labcore.model import Model
from labcore.quant import QuantLinear
from labcore.serving import LLMEngine, PromptLookup, Request, Static
from labcore.serving.flight import Result
from labcore.serving.sequence import Plan
from tests.serving.helpers import (
    CONTEXT,
    EOS,
    VOCAB,
    Heard,
    alone,
    check,
    drain,
    empty,
    prompt,
    request,
    small_model,
    take,
)  # fmt: skip

MODEL = small_model()
PLAIN = small_model(eos=False)
TEXT = "Once upon a time there was a"


@pytest.fixture(scope="module")
def story() -> Model:
    return labcore.load("story", dtype="float32")


@pytest.fixture(scope="module")
def begun(story: Model) -> list[int]:
    assert story.tokenizer is not None
    return story.tokenizer.encode(TEXT, add_bos=True)


# The same tokens

WAYS: list[dict[str, Any]] = [
    {},
    {"token_budget": 1},
    {"token_budget": 5, "block_size": 4},
    {"chunked": False, "token_budget": 9},
    {"num_blocks": 12, "block_size": 4, "preemption": "recompute", "prefix_caching": False},
    {"num_blocks": 12, "block_size": 4, "preemption": "swap", "token_budget": 6},
    {"policy": "static", "num_blocks": 12, "block_size": 4},
    {"policy": "dynamic", "chunked": False},
    {"policy": "one-by-one", "block_size": 1, "num_blocks": 50},
    {"policy": Static(2), "speculation": PromptLookup(2, longest=2), "token_budget": 3},
]


def _name(way: dict[str, Any]) -> str:
    """The same in every process: what a drafter prints holds its address."""
    parts = [f"{key}={type(value).__name__ if key == 'speculation' else value}" for key, value in way.items()]
    return ",".join(parts) or "usual"


SAMPLED: dict[str, Any] = {"temperature": 0.9, "top_p": 0.95, "repetition_penalty": 1.2}


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)], ids=["mha", "gqa", "mqa"])
@pytest.mark.parametrize("way", WAYS, ids=_name)
def test_tokens_are_the_same_alone(way: dict[str, Any], heads: tuple[int, int]) -> None:
    """Greedy, penalised and sampled requests side by side; prompts of 1 token, and of whole blocks."""
    model = small_model(heads=heads)
    kinds: list[dict[str, Any]] = [{}, {"repetition_penalty": 1.3}]
    kinds += [{**SAMPLED, "seed": seed} for seed in (3, 4)]
    requests = [
        request(f"r{index}", prompt(length, index % 3), 12, **kinds[index % len(kinds)])
        for index, length in enumerate((1, 4, 8, 16, 17, 3, 32, 1, 30))
    ]
    expected = [alone(model, one) for one in requests]
    engine = LLMEngine(model, **{"num_blocks": 40, **way})
    for turn in range(2):
        for one in requests:
            engine.add(one)
        heard = drain(engine)
        for one, output in zip(requests, expected, strict=True):
            assert heard[one.id].tokens == output.tokens, (one.id, turn)
            assert heard[one.id].reason == output.finish_reason
    if way.get("num_blocks") == 12:
        assert engine.stats.preemptions > 0
    empty(engine)


@pytest.mark.parametrize("speculation", [None, PromptLookup(3)])
def test_sampled_tokens_are_the_same_where_steps_are_taken_again(speculation: PromptLookup | None) -> None:
    """A step that fails has drawn already; the next one draws the same tokens with the same numbers."""
    engine = LLMEngine(PLAIN, num_blocks=12, block_size=4, speculation=speculation)
    launch = engine.runner.launch

    def failing(plan: Plan) -> Result:
        launch(plan)
        raise OutOfMemory("no memory for this step")

    requests = [
        request(f"r{index}", prompt(5 + index, index), 8, **SAMPLED, seed=index) for index in range(4)
    ]
    for one in requests:
        engine.add(one)
    heard: dict[str, Heard] = {}
    while engine.has_work:
        engine.runner.launch = failing  # type: ignore[method-assign]
        with pytest.raises(OutOfMemory):
            engine.step()
        engine.runner.launch = launch  # type: ignore[method-assign]
        take(engine, 1, heard)
    for one in requests:
        assert heard[one.id].tokens == alone(PLAIN, one).tokens


@pytest.mark.parametrize(("length", "cached"), [(1, 0), (4, 0), (5, 4), (8, 4), (9, 8)])
def test_a_whole_hit_still_computes_the_last_token(length: int, cached: int) -> None:
    engine = LLMEngine(PLAIN, num_blocks=20, block_size=4)
    expected = alone(PLAIN, request("a", prompt(length), 6)).tokens
    for found in (0, cached):
        engine.add(request("a", prompt(length), 6))
        heard = take(engine)
        assert engine.last_event is not None
        assert engine.last_event.rows[0].new == length - found
        assert engine.last_event.admitted == (("a", found),)
        drain(engine, heard=heard)
        assert (heard["a"].tokens, heard["a"].cached) == (expected, found)


def test_an_answer_is_a_prefix_too() -> None:
    """A conversation goes on: its second prompt is the first one with its answer, which are in the cache."""
    engine = LLMEngine(PLAIN, num_blocks=20, block_size=4)
    engine.add(request("a", prompt(6), 7))
    first = drain(engine)["a"].tokens
    longer = request("b", [*prompt(6), *first, 3], 5)
    engine.add(longer)
    heard = drain(engine)["b"]
    assert heard.cached == 12  # all but the answer's last token was computed
    assert heard.tokens == alone(PLAIN, longer).tokens


def test_quantized_weights() -> None:
    """The readable product: the fast one may round with the number of rows."""
    model = small_model()
    labcore.quantize(model, "int8", progress=False)
    layers = [layer for layer in model.transformer.modules() if isinstance(layer, QuantLinear)]
    for layer in layers:
        layer.fast = False
    assert layers
    requests = [request(f"r{index}", prompt(3 + 5 * index, index), 10) for index in range(5)]
    engine = LLMEngine(model, num_blocks=14, block_size=4, token_budget=9)
    for one in requests:
        engine.add(one)
    heard = drain(engine)
    for one in requests:
        assert heard[one.id].tokens == alone(model, one).tokens


# Ends


def test_text_comes_as_generate_writes_it(story: Model, begun: list[int]) -> None:
    engine = LLMEngine(story, num_blocks=60, speculation=PromptLookup())
    one = request("a", begun, 40)
    other = request("b", begun[:3], 40, temperature=0.8, seed=5, stop=["."])
    for each in (one, other):
        engine.add(each)
    heard = drain(engine)
    assert heard["a"].text == alone(story, one).text
    assert "." not in heard["b"].text
    assert heard["b"].text


def test_stop_strings_across_tokens(story: Model, begun: list[int]) -> None:
    whole = alone(story, request("a", begun, 40))
    assert story.tokenizer is not None
    for start in range(5, len(whole.text) - 12, 9):
        stop = whole.text[start : start + 6]  # begins and ends within tokens
        for speculation in (None, PromptLookup()):
            engine = LLMEngine(story, num_blocks=60, speculation=speculation)
            one = request("a", begun, 40, stop=[stop, "never this"])
            engine.add(one)
            heard, expected = drain(engine)["a"], alone(story, one)
            assert (heard.text, heard.reason) == (expected.text, "stop")
            assert heard.text == whole.text[: whole.text.index(stop)]
            assert heard.tokens == expected.tokens == whole.tokens[: len(heard.tokens)]


def test_an_end_of_sequence_ends_or_is_ignored() -> None:
    prompts = [prompt(5, seed) for seed in range(8)]
    ends = [tokens for tokens in prompts if EOS in alone(MODEL, request("a", tokens, 30)).tokens]
    engine = LLMEngine(MODEL, num_blocks=40)
    for index, tokens in enumerate(ends):
        engine.add(request(f"ends{index}", tokens, 30))
        engine.add(request(f"on{index}", tokens, 30, ignore_eos=True))
    heard = drain(engine)
    for index in range(len(ends)):
        assert (heard[f"ends{index}"].tokens[-1], heard[f"ends{index}"].reason) == (EOS, "eos")
        assert (len(heard[f"on{index}"].tokens), heard[f"on{index}"].reason) == (30, "length")
    assert len(ends) >= 3


@pytest.mark.parametrize("speculation", [None, PromptLookup(8)])
def test_the_engine_has_a_longest_answer(speculation: PromptLookup | None) -> None:
    for longest, length, new in ((20, 12, 8), (None, 50, CONTEXT - 50), (20, 19, 1)):
        engine = LLMEngine(PLAIN, num_blocks=8, max_model_len=longest, speculation=speculation)
        one = request("a", prompt(length), 500)
        engine.add(one)
        heard = drain(engine)["a"]
        assert (len(heard.tokens), heard.reason) == (new, "length")
        assert heard.tokens == alone(PLAIN, one).tokens[:new]


# Leaving


@pytest.mark.parametrize("preemption", ["recompute", "swap"])
@pytest.mark.parametrize("place", ["waiting", "in its prompt", "running", "preempted"])
def test_who_leaves_frees_everything_at_once(place: str, preemption: Any) -> None:
    engine = LLMEngine(
        PLAIN, num_blocks=7, block_size=2, token_budget=4, prefix_caching=False, preemption=preemption
    )
    for index in range(3):
        engine.add(request(f"r{index}", prompt(6 - index, index), 8))
    heard: dict[str, Heard] = {}
    plans = engine.scheduler
    while True:
        found = {
            "waiting": [one for one in plans.waiting if not one.admissions],
            "in its prompt": [one for one in plans.running if one.computed < one.prompt_length],
            "running": [one for one in plans.running if one.num_output],
            "preempted": [one for one in plans.waiting if one.preemptions],
        }[place]
        if found:
            break
        take(engine, 1, heard)
    one = found[0]
    held, used = len(one.blocks), engine.stats.blocks_used
    output = engine.abort(one.id)
    assert output is not None
    assert (output.finish_reason, output.tokens, output.num_output_tokens) == ("abort", (), one.num_output)
    assert engine.stats.blocks_used == used - held
    assert engine.abort(one.id) is None
    check(engine)
    engine.add(request(one.id, prompt(3, 9), 2))  # its id is free
    heard.pop(one.id, None)
    drain(engine, heard=heard)
    told = [why for event in engine.events for id, why in event.finished if id == one.id]
    assert told == ["abort", "length"]
    assert len(heard) == 3
    empty(engine)


def test_nobody_and_nothing() -> None:
    engine = LLMEngine(MODEL, num_blocks=4)
    assert engine.step() == []
    assert engine.idle_step
    assert engine.abort("nobody") is None
    assert engine.last_event is None
    assert not engine.has_work


def test_what_is_refused_leaves_nothing() -> None:
    engine = LLMEngine(MODEL, num_blocks=3, block_size=4, max_model_len=30)
    before = engine.stats
    for tokens, settings, error in (
        ((), {}, PromptError),
        ((1,) * 30, {}, PromptError),
        ((1, VOCAB), {}, PromptError),
        ((1, -1), {}, PromptError),
        ((1,) * 8, {"new": 5}, CacheFull),
        ((1, 2), {"stop": "x"}, SamplingError),
    ):
        with pytest.raises(error):
            engine.add(request("a", tokens, **settings))
    for count in (-1, 21):
        with pytest.raises(SamplingError, match=f"logprobs is {count}"):
            Request("a", (1,), logprobs=count)
    assert engine.stats == before
    assert not engine.has_work
    one = request("a", (1,) * 8, 4, ignore_eos=True)  # the most that fits
    engine.add(one)
    with pytest.raises(ValueError, match="'a' is here already"):
        engine.add(request("a", (1, 2), 2))
    assert drain(engine)["a"].tokens == alone(MODEL, one).tokens
    engine.add(one)
    assert drain(engine)["a"].tokens == alone(MODEL, one).tokens
    empty(engine)


# What is told


@pytest.mark.parametrize("count", [0, 1, 5, 20])
def test_logprobs_are_those_of_the_model(count: int) -> None:
    engine = LLMEngine(PLAIN, num_blocks=10, block_size=4, token_budget=5)
    requests = [
        request(f"r{index}", prompt(4 + index, index), 6, logprobs=count, **settings)
        for index, settings in enumerate(({}, {"temperature": 0.7, "top_k": 3, "seed": 1}))
    ]
    for one in requests:
        engine.add(one)
    engine.add(request("silent", prompt(3), 6))
    heard = drain(engine)
    assert heard["silent"].logprobs == []
    for one in requests:
        told, tokens = heard[one.id].logprobs, heard[one.id].tokens
        logs = labcore.logits(PLAIN, [*one.prompt, *tokens]).log_softmax(-1)[0, len(one.prompt) - 1 :]
        assert [entry.token for entry in told] == tokens
        for row, entry in zip(logs, told, strict=False):
            assert entry.logprob == pytest.approx(float(row[entry.token]), abs=1e-4)
            assert len(entry.top) == min(count, VOCAB)
            assert [value for _, value in entry.top] == sorted((v for _, v in entry.top), reverse=True)
            assert row.topk(len(entry.top)).indices.tolist() == [token for token, _ in entry.top]


@pytest.mark.parametrize("way", WAYS, ids=_name)
def test_events_and_stats_agree(way: dict[str, Any]) -> None:
    engine = LLMEngine(PLAIN, **{"num_blocks": 40, **way})
    requests = [request(f"r{index}", prompt(3 + 4 * index, index), 9) for index in range(6)]
    for one in requests:
        engine.add(one)
    heard, events = drain(engine), list(engine.events)
    assert [event.index for event in events] == list(range(engine.stats.steps))
    assert sorted(id for event in events for id, _ in event.finished) == [one.id for one in requests]
    assert engine.stats.preemptions == sum(len(event.preempted) for event in events)
    assert engine.stats.output_tokens == sum(event.drawn for event in events) == 6 * 9
    assert engine.stats.prompt_tokens == sum(len(one.prompt) for one in requests)
    first = {id: found for event in reversed(events) for id, found in event.admitted}
    assert engine.stats.prefix_hits == sum(first.values())
    for one in requests:
        joined = sum(id == one.id for event in events for id, _ in event.admitted)
        assert joined == 1 + sum(one.id in event.preempted for event in events)
        assert sum(row.drawn for event in events for row in event.rows if row.id == one.id) == 9
        assert len(heard[one.id].tokens) == 9
    for event, after in zip(events, events[1:], strict=False):
        assert event.start_s <= event.end_s <= after.start_s
        assert 0 <= event.schedule_s <= event.seconds
        assert event.blocks_used <= event.blocks_total == engine.blocks.pool.num_blocks
    assert (events[-1].waiting, events[-1].running, events[-1].blocks_used) == (0, 0, 0)


@pytest.mark.parametrize("settings", [{}, {"overlap": True}, {"policy": "static"}])
def test_keys_of_weights_that_were_changed_are_forgotten(settings: dict[str, Any]) -> None:
    """A model that is quantized, or trained on, between two requests."""
    model = small_model(eos=False)
    engine = LLMEngine(model, num_blocks=40, block_size=4, **settings)

    def told(id: str) -> Heard:
        one = request(id, prompt(17))
        engine.add(one)
        heard = drain(engine)[id]
        assert heard.tokens == alone(model, one).tokens
        return heard

    told("before")
    labcore.quantize(model, "int4:group=16")
    assert told("after").cached == 0
    assert told("again").cached == 16, "what these weights computed stands"
    empty(engine)
