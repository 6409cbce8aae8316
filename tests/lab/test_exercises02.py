"""Lesson 2's exercises name the mistakes they were written for; its hunts catch more than their own bug."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from labcore.cache import KVCache
from labcore.generation import SamplingParams, decode_step, prefill, process_logits
from labcore.lab import exercises, hunts
from labcore.lab.exercises import lesson02
from labcore.lab.exercises.checking import TODO
from labcore.model import Model
from labcore.perf.costs import step_costs


def judged(id: str, answer: Any) -> str:
    """The message on a wrong answer."""
    verdict = exercises.find(id).check(answer)
    assert verdict.attempted
    assert not verdict.ok
    return verdict.message


def loop(
    model: Model, tokens: Tensor, n: int, cache: KVCache, *, drop_first: bool = False, extra: int = 0
) -> list[int]:
    """A greedy loop with optional mistakes."""
    logits = prefill(model, tokens, cache)
    answer = [] if drop_first else [int(logits.argmax(-1))]
    newest = int(logits.argmax(-1))
    while len(answer) < n + extra:
        tokens = torch.cat([tokens, torch.tensor([[newest]])], dim=1)
        newest = int(decode_step(model, tokens, cache).argmax(-1))
        answer.append(newest)
    return answer


def without_cache(model: Model, tokens: Tensor, n: int, cache: KVCache) -> list[int]:
    answer: list[int] = []
    for _ in range(n):
        cache.reset()
        answer.append(int(prefill(model, tokens, cache).argmax(-1)))
        tokens = torch.cat([tokens, torch.tensor([answer[-1:]])], dim=1)
    return answer


def one_pass_too_many(model: Model, tokens: Tensor, n: int, cache: KVCache) -> list[int]:
    return loop(model, tokens, n, cache, extra=1)[:n]


LOOPS: list[tuple[Callable[..., Any], str]] = [
    (
        lambda m, t, n, c: loop(m, t, n, c, drop_first=True),
        "threw away the one that the prefill's logits give",
    ),
    (lambda m, t, n, c: loop(m, t, n, c, extra=1), "you return 2 tokens"),
    (one_pass_too_many, "it took 2 forward passes; n tokens need n"),
    (without_cache, "positions were fed; the cache leaves p + n - 1"),
    (lambda m, t, n, c: torch.zeros(n), "return a list of whole numbers"),
    (lambda m, t, n, c: [0] * n, "greedy decoding gives"),
    (lambda m, t, n, c: [int(decode_step(m, t[:, :0], c).argmax())], "your loop raised"),
]


@pytest.mark.parametrize(("answer", "words"), LOOPS)
def test_loops(answer: Callable[..., Any], words: str) -> None:
    assert words in judged("02.1", answer)


def test_an_unfinished_loop_is_not_attempted() -> None:
    assert not exercises.find("02.1").check(lambda *_: TODO).attempted


def test_prefill_flops_are_those_of_the_cost_model() -> None:
    for _ in range(5):
        config, n = lesson02._random_shape()
        costs = step_costs(config, 1, n, n)
        linear = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj", "lm_head")
        assert lesson02.prefill_flops(config, n) == sum(costs.operation(name).flops for name in linear)


def flops(config: Any, n: int, **changes: Any) -> int:
    return lesson02.prefill_flops(config.with_(**changes), n)


FLOPS: list[tuple[Callable[..., Any], str]] = [
    (lambda c, n: flops(c, n) // 2, "you count a multiply-add as one operation; here it is two"),
    (lambda c, n: flops(c, n, num_key_value_heads=c.num_attention_heads), "num_key_value_heads heads"),
    (lambda c, n: flops(c, n) + 2 * (n - 1) * c.hidden_size * c.vocab_size, "count the head once"),
    (lambda c, n: flops(c, n) - 2 * c.hidden_size * c.vocab_size, "you left out the head"),
    (
        lambda c, n: flops(c, n) - 2 * n * c.num_hidden_layers * c.hidden_size * c.intermediate_size,
        "SwiGLU has three matrices",
    ),
    (lambda c, n: flops(c, n) + 1e9, "and it should be"),
]


@pytest.mark.parametrize(("answer", "words"), FLOPS)
def test_flops(answer: Callable[..., Any], words: str) -> None:
    assert words in judged("02.2", answer)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda f, b, w: f / b, "ridge point"),
        (lambda f, b, w: f / b * w, "half as many positions"),
        (lambda f, b, w: f / b / (2 * w), "a wider weight takes longer to read"),
        (lambda f, b, w: 2 * b / (f * w), "its inverse"),
    ],
)
def test_crossing(answer: Callable[..., Any], words: str) -> None:
    assert words in judged("02.3", answer)


def test_positions_solution_is_the_golden_one() -> None:
    golden = {(8, 3): (27, 10), (10, 50): (1725, 59), (512, 512): (392_960, 1_023)}
    for (p, n), expected in golden.items():
        assert (lesson02.positions(p, n, False), lesson02.positions(p, n, True)) == expected


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda p, n, c: p + n if c else n * p + n * (n - 1) // 2, "with the cache it is p + n - 1"),
        (lambda p, n, c: p + n if c else n * p + n * (n + 1) // 2, "in both cases"),
        (lambda p, n, c: p + n - 1 if c else n * p + n * (n + 1) // 2, "from i = 0"),
        (lambda p, n, c: p + n - 1 if c else n * p, "not the prompt alone"),
        (lambda p, n, c: lesson02.positions(p, n, not c), "you swapped the two cases"),
    ],
)
def test_positions(answer: Callable[..., Any], words: str) -> None:
    assert words in judged("02.4", answer)


def test_nucleus_solution_is_what_the_engine_keeps() -> None:
    stream = torch.Generator().manual_seed(1)
    for temperature, p in ((0.5, 0.9), (1.0, 0.5), (2.0, 0.95)):
        logits = torch.randn(30, generator=stream) * 3
        kept = process_logits(logits[None], SamplingParams(temperature=temperature, top_p=p))[0] > -torch.inf
        found = lesson02.nucleus(logits, temperature, p)
        assert sorted(found) == kept.nonzero().flatten().tolist()
        assert found[0] == int(logits.argmax())


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda x, t, p: lesson02.nucleus(x, 1.0, p), "you ignore it"),
        (lambda x, t, p: lesson02.nucleus(x, 1 / t, p), "logits are divided by it"),
        (lesson02._nucleus_without_crossing, "you drop the token that crosses p"),
        (lesson02._nucleus_by_threshold, "bounds the sum over the best tokens"),
    ],
)
def test_nucleus(answer: Callable[..., Any], words: str) -> None:
    assert words in judged("02.5", answer)


def test_the_order_hunt_catches_a_cut_without_the_crossing_token() -> None:
    def greedy_cut(logits: Tensor, params: SamplingParams, history: Tensor | None = None) -> Tensor:
        scaled = logits / params.temperature
        if params.top_p == 1.0:
            return scaled
        keep = torch.zeros_like(scaled, dtype=torch.bool)
        keep[0, lesson02._nucleus_without_crossing(logits[0], params.temperature, params.top_p)] = True
        keep[0, int(logits.argmax())] = True
        return scaled.masked_fill(~keep, -torch.inf)

    verdict = hunts.find("02.B").check(greedy_cut)
    assert not verdict.ok
    assert "too few" in verdict.message


def test_the_position_hunt_accepts_a_shift_that_rotary_positions_cannot_see() -> None:
    """All positions one later is no bug: attention depends on differences of positions only."""

    def later(self: KVCache, n: int) -> Tensor:
        return KVCache.begin(self, n) + 1

    check = hunts.find("02.A").check
    assert check(later).ok
    assert not check(lambda self, n: KVCache.begin(self, n) * 0).ok
