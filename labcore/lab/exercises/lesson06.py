"""Exercises of lesson 6: intensity, the batch that tips it, one step, the wall, the price."""

from __future__ import annotations

import math
import random
from typing import Any

from labcore.lab.exercises.checking import Verdict, on_cases
from labcore.lab.exercises.registry import exercise

# 06.1 ------------------------------------------------------------------------------------------------


def intensity(rows: int, inputs: int, outputs: int, bytes_per_number: float) -> float:
    """FLOP per byte of a linear layer over so many rows: inputs and weights read, outputs written."""
    moved = rows * inputs + inputs * outputs + rows * outputs
    return 2 * rows * inputs * outputs / (moved * bytes_per_number)


@exercise(
    "06.1",
    title="Work per byte",
    difficulty=2,
    importance=3,
    minutes=5,
    hints=(
        "FLOPs: every row meets every weight, a multiplication and an addition each.",
        "Bytes: rows of inputs and the matrix are read, rows of outputs are written.",
    ),
    solution=intensity,
)
def _check_intensity(answer: Any) -> Verdict:
    cases = [(8, 4096, 4096, 2), (128, 4096, 4096, 2), (512, 4096, 4096, 2)]
    cases += [(random.randint(1, 300), 512, random.randint(300, 40_000), random.choice((2, 4)))]

    def moved(r: int, i: int, o: int) -> int:
        return r * i + i * o + r * o

    return on_cases(
        answer,
        cases,
        intensity,
        names=("rows", "inputs", "outputs", "bytes_per_number"),
        praise="4 of 4 layers. 4096² in fp16: 8.0 at 8 rows, 120 at 128, 410 at 512.",
        mistakes={
            "the outputs are written, too.": lambda r, i, o, b: 2 * r * i * o / ((r * i + i * o) * b),
            "the matrix is read, too; it is most of the bytes.": (
                lambda r, i, o, b: 2 * r * i * o / ((r * i + r * o) * b)
            ),
            "inputs and outputs move, too, not the matrix alone.": lambda r, i, o, b: 2 * r / b,
            "a multiply-add is two operations.": lambda r, i, o, b: r * i * o / (moved(r, i, o) * b),
            "numbers are not bytes: each takes bytes_per_number.": (
                lambda r, i, o, b: 2 * r * i * o / moved(r, i, o)
            ),
        },
        what="layers",
    )


# 06.2 ------------------------------------------------------------------------------------------------


def critical_batch(peak_flops: float, bandwidth: float, bytes_per_weight: float) -> float:
    """Tokens a step from which arithmetic outlasts the reading of the weights."""
    return peak_flops / bandwidth * bytes_per_weight / 2


@exercise(
    "06.2",
    title="The batch that tips it",
    difficulty=2,
    importance=3,
    minutes=5,
    hints=(
        "Per weight: bytes_per_weight are read once, and every token takes 2 FLOP.",
        "Set 2 * batch / peak_flops equal to bytes_per_weight / bandwidth.",
    ),
    solution=critical_batch,
)
def _check_critical_batch(answer: Any) -> Verdict:
    cases = [(312e12, 2039e9, 2), (312e12, 2039e9, 1), (312e12, 2039e9, 0.5)]
    cases += [(random.uniform(1e13, 1e15), random.uniform(3e11, 8e12), 2)]
    return on_cases(
        answer,
        cases,
        critical_batch,
        names=("peak_flops", "bandwidth", "bytes_per_weight"),
        praise="4 of 4. An A100 turns at 153 tokens with fp16 weights, at 38 with 4 bits.",
        mistakes={
            "a token takes 2 FLOP for each weight.": lambda f, b, w: f / b * w,
            "narrower weights are read sooner: their bytes count.": lambda f, b, w: f / b / 2,
            "that is the ridge alone.": lambda f, b, w: f / b,
            "FLOP per byte is peak over bandwidth; yours is turned over.": lambda f, b, w: b / f * w / 2,
        },
        what="machines",
    )


# 06.3 ------------------------------------------------------------------------------------------------


def step_time(
    batch: int,
    context: int,
    kv_per_token: float,
    weight_bytes: float,
    parameters: float,
    peak_flops: float,
    bandwidth: float,
) -> float:
    """Seconds of a decode step: every cache read, then weights or arithmetic, whichever is longer."""
    cache = batch * context * kv_per_token / bandwidth
    return cache + max(2 * batch * parameters / peak_flops, weight_bytes / bandwidth)


def _step(b: int, t: int, kv: float, w: float, p: float, f: float, bw: float) -> tuple[float, float, float]:
    return b * t * kv / bw, 2 * b * p / f, w / bw


def _no_two(b: int, t: int, kv: float, w: float, p: float, f: float, bw: float) -> float:
    cache, compute, weights = _step(b, t, kv, w, p, f, bw)
    return cache + max(compute / 2, weights)


@exercise(
    "06.3",
    title="One step",
    difficulty=3,
    importance=3,
    minutes=7,
    hints=(
        "Three times: all caches over bandwidth, weights over bandwidth, 2 FLOP a parameter and token over "
        "the peak.",
        "Weights and arithmetic overlap, so the longer counts. Attention waits for memory at any batch, so "
        "the cache's time comes on top.",
    ),
    solution=step_time,
)
def _check_step_time(answer: Any) -> Verdict:
    a100 = (524_288, 13.48e9, 6.74e9, 312e12, 2039e9)
    cases = [(batch, 1024, *a100) for batch in (1, 8, 32, 400)]
    cases += [(random.randint(1, 500), random.randint(100, 4000), *a100)]
    return on_cases(
        answer,
        cases,
        step_time,
        names=("batch", "context", "kv_per_token", "weight_bytes", "parameters", "peak_flops", "bandwidth"),
        praise="5 of 5 steps. Llama-2-7B on an A100, 1,024 tokens: 6.9, 8.7 and 15.0 ms at batch 1, 8, 32.",
        mistakes={
            "the cache's time comes on top of the longer of the other two, not inside the max.": (
                lambda *a: max(_step(*a))
            ),
            "every sequence has a cache of its own: times the batch.": lambda b, *rest: (
                step_time(b, *rest) - (b - 1) * rest[0] * rest[1] / rest[-1]
            ),
            "the weights are read once for the whole batch.": lambda b, *rest: (
                _step(b, *rest)[0] + max(_step(b, *rest)[1], b * _step(b, *rest)[2])
            ),
            "a parameter takes 2 FLOP a token.": _no_two,
            "weights and arithmetic overlap: the longer of them, not both.": lambda *a: sum(_step(*a)),
        },
        what="steps",
    )


# 06.4 ------------------------------------------------------------------------------------------------


def largest_batch(memory: float, weight_bytes: float, kv_per_token: float, context: int) -> int:
    """Sequences whose caches fit beside the weights."""
    return max(0, int((memory - weight_bytes) // (kv_per_token * context)))


@exercise(
    "06.4",
    title="The wall",
    difficulty=1,
    importance=3,
    minutes=3,
    hints=(
        "What is left beside the weights is shared among caches of context * kv_per_token bytes.",
        "Round down: part of a sequence does not fit. And where the weights alone do not fit, nothing does.",
    ),
    solution=largest_batch,
)
def _check_largest_batch(answer: Any) -> Verdict:
    cases = [(80e9, 13.48e9, 524_288, 1024), (24e9, 13.48e9, 524_288, 4096), (10e9, 13.48e9, 524_288, 512)]
    cases += [(random.uniform(30e9, 90e9), 16.1e9, 131_072, random.randint(500, 9000))]
    return on_cases(
        answer,
        cases,
        largest_batch,
        names=("memory", "weight_bytes", "kv_per_token", "context"),
        praise="4 of 4 walls. Llama-2-7B on 80 GB, 1,024 tokens each: 123 sequences.",
        mistakes={
            "the weights are in the same memory.": lambda m, w, kv, t: int(m // (kv * t)),
            "the last sequence does not fit whole: round down.": lambda m, w, kv, t: max(
                0, math.ceil((m - w) / (kv * t))
            ),
            "where the weights alone do not fit, nothing does: 0, not less.": lambda m, w, kv, t: int(
                (m - w) // (kv * t)
            ),
            "a sequence holds `context` tokens, not one.": lambda m, w, kv, t: max(0, int((m - w) // kv)),
        },
        what="walls",
    )


# 06.5 ------------------------------------------------------------------------------------------------


def usd_per_million(usd_per_hour: float, batch: int, step_seconds: float) -> float:
    """US dollars per million output tokens while the machine decodes."""
    return usd_per_hour / (3600 * batch / step_seconds) * 1e6


@exercise(
    "06.5",
    title="The price",
    difficulty=1,
    importance=2,
    minutes=3,
    hints=(
        "How many tokens does the machine give in an hour?",
        "batch / step_seconds tokens a second, 3,600 times that an hour.",
    ),
    solution=usd_per_million,
)
def _check_price(answer: Any) -> Verdict:
    cases = [(1.0, 1, 1 / 43.6), (2.5, 32, 0.015), (random.uniform(0.5, 5), random.randint(2, 99), 0.02)]
    return on_cases(
        answer,
        cases,
        usd_per_million,
        names=("usd_per_hour", "batch", "step_seconds"),
        praise="3 of 3. $1 an hour at 43.6 tok/s is $6.37.",
        mistakes={
            "every sequence of the batch gets a token each step.": lambda p, b, s: p * s / 3600 * 1e6,
            "an hour has 3,600 seconds.": lambda p, b, s: p / (60 * b / s) * 1e6,
            "per million tokens, not per thousand.": lambda p, b, s: p / (3600 * b / s) * 1e3,
            "per million tokens, not per token.": lambda p, b, s: p / (3600 * b / s),
        },
        what="prices",
    )
