"""The loop: one answer whatever the cache, the batch or the way of asking."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

import labcore
from labcore import cache as caches
from labcore.errors import PromptError, SamplingError
from labcore.generation import TraceOptions, decode_step, prefill
from labcore.model import Model
from tests.caches import EXACT

PROMPT = "once upon a time"
KINDS = list(EXACT.values())


def by_hand(model: Model, tokens: list[int], n: int) -> list[int]:
    """Greedy decoding with nothing but full forward passes."""
    known = list(tokens)
    for _ in range(n):
        known.append(int(labcore.logits(model, known)[0, -1].argmax()))
    return known[len(tokens) :]


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_is_the_argmax_of_full_passes(model: Model, kind: str) -> None:
    out = labcore.generate(model, PROMPT, max_new_tokens=12, cache=kind, ignore_eos=True)
    assert out.tokens == by_hand(model, out.prompt_tokens, 12)


def test_prefill_and_decode_step_are_the_whole_story(model: Model) -> None:
    cache = caches.create("contiguous", model.config)
    known = torch.tensor([[3, 1, 4]])
    first = prefill(model, known, cache)
    known = torch.cat([known, first.argmax(-1, keepdim=True)], 1)
    second = decode_step(model, known, cache)
    assert cache.length == 4
    torch.testing.assert_close(second, labcore.logits(model, known)[:, -1], atol=1e-4, rtol=1e-4)


def test_a_step_with_nothing_to_feed_is_refused(model: Model) -> None:
    cache = caches.create("contiguous", model.config)
    known = torch.tensor([[3, 1, 4]])
    prefill(model, known, cache)
    with pytest.raises(PromptError, match="the cache holds 3 positions and 3 tokens are known"):
        decode_step(model, known, cache)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_batch_equals_each_alone(model: Model, kind: str, temperature: float) -> None:
    prompts = ["a", "what is it?", "hello, you", PROMPT]
    settings = {
        "max_new_tokens": 8,
        "temperature": temperature,
        "repetition_penalty": 1.2,
        "cache": kind,
        "ignore_eos": True,
    }
    together = labcore.generate(model, prompts, seed=3, **settings)
    alone = [labcore.generate(model, prompt, seed=3 + i, **settings) for i, prompt in enumerate(prompts)]
    assert [out.tokens for out in together] == [out.tokens for out in alone]
    assert [out.text for out in together] == [out.text for out in alone]


def test_a_seed_repeats_and_another_differs(model: Model) -> None:
    def run(seed: int) -> list[int]:
        return labcore.generate(
            model, PROMPT, temperature=2.0, seed=seed, max_new_tokens=20, ignore_eos=True
        ).tokens

    assert run(1) == run(1) != run(2)


def test_stream_gives_the_text_of_generate(model: Model) -> None:
    steps = list(labcore.stream(model, PROMPT, max_new_tokens=10, temperature=1.5, seed=4))
    out = labcore.generate(model, PROMPT, max_new_tokens=10, temperature=1.5, seed=4)
    assert "".join(step.text for step in steps) == out.text
    assert [step.token for step in steps] == out.tokens
    assert [step.phase for step in steps] == ["prefill"] + ["decode"] * (len(steps) - 1)
    assert [step.finish_reason for step in steps] == [None] * (len(steps) - 1) + [out.finish_reason]


def test_token_ids_and_text_are_the_same_prompt(model: Model) -> None:
    ids = model.tokenizer.encode(PROMPT)
    assert labcore.generate(model, ids).tokens == labcore.generate(model, PROMPT).tokens
    assert labcore.generate(model, torch.tensor(ids)).tokens == labcore.generate(model, PROMPT).tokens


def test_stop_string_ends_the_text_before_it(model: Model) -> None:
    free = labcore.generate(model, PROMPT, max_new_tokens=20, temperature=1.0, ignore_eos=True)
    stop = free.text[5:8]
    at = free.text.find(stop)
    out = labcore.generate(model, PROMPT, max_new_tokens=20, temperature=1.0, ignore_eos=True, stop=stop)
    assert (out.text, out.finish_reason) == (free.text[:at], "stop")
    streamed = labcore.stream(model, PROMPT, max_new_tokens=20, temperature=1.0, ignore_eos=True, stop=[stop])
    assert "".join(step.text for step in streamed) == free.text[:at]


def test_text_held_back_for_a_stop_string_is_not_lost(model: Model) -> None:
    free = labcore.generate(model, PROMPT, max_new_tokens=10, ignore_eos=True)
    out = labcore.generate(model, PROMPT, max_new_tokens=10, ignore_eos=True, stop=free.text[-2:] + "never")
    assert (out.text, out.finish_reason) == (free.text, "length")


def test_eos_ends_an_answer_and_not_its_neighbours(model: Model) -> None:
    eos = model.config.eos_token_ids[0]
    outs = labcore.generate(model, ["ab", "hello"], temperature=3.0, max_new_tokens=60, seed=11)
    reasons = {out.finish_reason for out in outs}
    assert "eos" in reasons
    for out in outs:
        assert (out.tokens[-1] == eos) == (out.finish_reason == "eos")
        assert eos not in out.tokens[:-1]


def test_ends_where_the_context_ends(model: Model) -> None:
    out = labcore.generate(model, "a" * 60, max_new_tokens=50, ignore_eos=True)
    assert (len(out.tokens), out.finish_reason) == (4, "length")


def test_times_add_up(model: Model) -> None:
    out = labcore.generate(model, PROMPT, max_new_tokens=5, ignore_eos=True)
    assert out.ttft_s > 0
    assert out.seconds == pytest.approx(out.ttft_s + 4 * out.tpot_s)
    assert labcore.generate(model, PROMPT, max_new_tokens=1).tpot_s is None


def test_trace_records_shapes_and_phases(model: Model) -> None:
    out = labcore.generate(model, [1, 2, 3, 4, 5], max_new_tokens=4, ignore_eos=True, trace=True)
    steps = out.trace.steps
    assert [step.input_shape for step in steps] == [(1, 5), (1, 1), (1, 1), (1, 1)]
    assert [step.cache_length for step in steps] == [5, 6, 7, 8]
    assert [step.position for step in steps] == [0, 5, 6, 7]
    assert [step.token for step in steps] == out.tokens
    assert [step.input_tokens for step in steps[1:]] == [[token] for token in out.tokens[:-1]]
    assert out.trace.prefill.top[0].token == out.tokens[0]
    assert out.trace.prefill.flops > 4 * out.trace.decodes[0].flops


def test_trace_without_cache_feeds_everything(model: Model) -> None:
    trace = labcore.generate(
        model, [1, 2, 3], max_new_tokens=3, ignore_eos=True, cache="none", trace=True
    ).trace
    assert [step.input_shape for step in trace.steps] == [(1, 3), (1, 4), (1, 5)]
    assert [step.cache_bytes for step in trace.steps] == [0, 0, 0]
    assert [step.costs.kv_read_bytes + step.costs.kv_write_bytes for step in trace.steps] == [0, 0, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_traced_attention_is_a_distribution_over_the_past(model: Model, kind: str) -> None:
    options = TraceOptions(attention=[(0, 0), (2, 3)])
    trace = labcore.generate(
        model, [1, 2, 3], max_new_tokens=3, ignore_eos=True, cache=kind, trace=options
    ).trace
    for step in trace.steps:
        assert set(step.attention) == {(0, 0), (2, 3)}
        for weights in step.attention.values():
            assert weights.shape == (step.input_shape[1], step.context)
            torch.testing.assert_close(weights.sum(-1), torch.ones(step.input_shape[1]))
    first = trace.prefill.attention[(2, 3)]
    assert first.triu(1).abs().max() == 0


def test_tracing_does_not_change_the_answer(model: Model) -> None:
    settings = {"max_new_tokens": 6, "temperature": 1.0, "seed": 5, "ignore_eos": True}
    traced = labcore.generate(model, PROMPT, trace=TraceOptions(attention="all"), **settings)
    assert traced.tokens == labcore.generate(model, PROMPT, **settings).tokens


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "is empty; give"),
        ([], "is empty; give"),
        ([[1, 2], []], "Prompt 1 is empty"),
        ("a" * 64, "is 64 tokens and model 'tiny' holds 64 in all; shorten it to at most 63"),
        ([1, 99], "token 99; model 'tiny' knows tokens 0 to 31"),
        ([1, -1], "token -1"),
    ],
)
def test_bad_prompts(model: Model, prompt: object, message: str) -> None:
    for call in (labcore.generate, lambda *a: labcore.stream(*a)):
        if (
            isinstance(prompt, list)
            and prompt
            and isinstance(prompt[0], list)
            and call is not labcore.generate
        ):
            continue
        with pytest.raises(PromptError, match=message):
            call(model, prompt)


def test_a_prompt_beyond_the_attention_window_is_told_of_it(model: Model) -> None:
    config = replace(model.config, sliding_window=64)
    windowed = Model(name="w", config=config, transformer=model.transformer, tokenizer=None)
    with pytest.raises(PromptError, match="holds 64 in all, as the model's attention window is 64"):
        labcore.generate(windowed, [1] * 64)


def test_a_model_without_tokenizer_takes_ids_only(model: Model) -> None:
    bare = Model(name="bare", config=model.config, transformer=model.transformer, tokenizer=None)
    assert labcore.generate(bare, [1, 2], max_new_tokens=3).text == ""
    with pytest.raises(PromptError, match="'bare' has no tokenizer; give token ids"):
        labcore.generate(bare, "hello")
    with pytest.raises(SamplingError, match="need a tokenizer and this model has none"):
        labcore.generate(bare, [1, 2], stop="x")


@pytest.mark.parametrize("settings", [{"max_new_tokens": 0}, {"num_beams": 0}, {"stop": [""]}, {"top_p": 2}])
def test_bad_settings(model: Model, settings: dict[str, object]) -> None:
    with pytest.raises(SamplingError):
        labcore.generate(model, PROMPT, **settings)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


SURROUNDINGS = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_what_pytorch_was_told_for_other_work_changes_nothing(model: Model, name: str) -> None:
    """The C functions write into memory of so many fp32 numbers; half as many bytes end the process."""

    def answers() -> list[list[int]]:
        kinds = ("contiguous", "int8", "heavy_hitters:budget=12", "paged")
        greedy = [labcore.generate(one, PROMPT, cache=kind) for kind in kinds for one in (model, shrunk)]
        drawn = labcore.generate(model, [PROMPT, "a b"], temperature=1.0, top_p=0.9, seed=3)
        beams = labcore.generate(model, PROMPT, num_beams=2, max_new_tokens=8)
        return [output.tokens for output in [*greedy, *drawn, beams]]

    def coded() -> Model:
        twin = replace(model, transformer=copy.deepcopy(model.transformer))
        labcore.quantize(twin, "int8")
        return twin

    shrunk = coded()
    expected = answers()
    with SURROUNDINGS[name]():
        shrunk = coded()
        assert answers() == expected


def test_threads_may_ask_one_model_at_once(model: Model) -> None:
    """In batches of different sizes, so that what steps work in changes its size all the time."""
    prompts = [[PROMPT] * size for size in (1, 2, 5, 3)]

    def texts(batch: list[str]) -> list[list[int]]:
        outputs = labcore.generate(model, batch, max_new_tokens=40, ignore_eos=True)
        return [output.tokens for output in outputs]

    expected = [texts(batch) for batch in prompts]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(texts, prompts * 8)) == expected * 8


def test_a_process_may_end_with_an_unfinished_answer() -> None:
    """The interpreter closes what is left of it, when a new tensor would be its last."""
    program = "import labcore; answer = labcore.stream(labcore.load('story'), 'Once'); next(answer)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
