"""Exercises of lesson 7: what bits really take, two grids, smoothing, a smaller step, GPTQ's correction."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from labcore.lab.exercises.checking import Verdict, on_cases
from labcore.lab.exercises.registry import exercise
from labcore.lab.exercises.rounding_cases import (
    astride,
    loud,
    midway,
    on_copies,
    other_grid,
    outlying,
)

# 07.1 ------------------------------------------------------------------------------------------------


def effective_bits(bits: int, group: int, scale_bits: int, zero_bits: int) -> float:
    """Bits that a weight takes, its share of the group's scale and zero point included."""
    return bits + (scale_bits + zero_bits) / group


@exercise(
    "07.1",
    title="Four bits and change",
    difficulty=1,
    importance=3,
    minutes=3,
    hints=(
        "Each weight has a code of its own. What else has to be stored for a group, and how often?",
        "One scale and one zero point a group: share their bits among its weights.",
    ),
    solution=effective_bits,
)
def _check_bits(answer: Any) -> Verdict:
    cases = [(4, 128, 16, 0), (4, 32, 16, 8), (3, random.choice((16, 64, 96)), 32, random.choice((4, 8)))]
    return on_cases(
        answer,
        cases,
        effective_bits,
        names=("bits", "group", "scale_bits", "zero_bits"),
        praise="3 of 3 formats. 4 bits in groups of 128 take 4.125, in groups of 32 with zero points 4.75.",
        mistakes={
            "the zero point is stored, too.": lambda b, g, s, z: b + s / g,
            "scale and zero point are stored, too.": lambda b, g, s, z: float(b),
            "a scale belongs to a group, not to each weight.": lambda b, g, s, z: float(b + s + z),
            "a code belongs to each weight, not to a group.": lambda b, g, s, z: (b + s + z) / g,
        },
        what="formats",
        tolerance=1e-6,
    )


# 07.2 ------------------------------------------------------------------------------------------------


def absmax(x: Tensor, bits: int) -> Tensor:
    """Codes of x, symmetric: the largest magnitude on the last code, the others to the nearest."""
    scale = x.abs().max() / (2 ** (bits - 1) - 1)
    return (x / scale).round().to(torch.int8)


def _step(x: Tensor, bits: int) -> Tensor:
    return x.abs().max() / (2 ** (bits - 1) - 1)


@exercise(
    "07.2",
    title="One loud number",
    difficulty=2,
    importance=3,
    minutes=5,
    hints=(
        "Codes of b bits are signed integers. Which is the largest that has a partner of the other sign?",
        "The largest magnitude of x lies on 2**(bits - 1) - 1: that gives the scale.",
        "Divide x by the scale and round to the nearest integer.",
    ),
    solution=absmax,
)
def _check_absmax(answer: Any) -> Verdict:
    cases = [(torch.tensor([0.1, -0.2, 0.3, 60.0]), 8), loud(8), loud(4), loud(3)]
    return on_cases(
        on_copies(answer),
        cases,
        absmax,
        names=("x", "bits"),
        praise="4 of 4 vectors. Beside a 60, both 0.1 and -0.2 become 0: one number takes the codes of all.",
        mistakes={
            "the last code is 2**(bits - 1) - 1.": lambda x, b: (x * 2 ** (b - 1) / x.abs().max()).round(),
            "a negative number may have the largest magnitude.": lambda x, b: (
                x / x.max() * (2 ** (b - 1) - 1)
            ).round(),
            "to the nearest code; you cut the fraction off.": lambda x, b: (x / _step(x, b)).trunc(),
            "to the nearest code; you round down.": lambda x, b: (x / _step(x, b)).floor(),
            "127 is the last code of 8 bits only.": lambda x, b: (x * 127 / x.abs().max()).round(),
            "codes are asked for, not what they stand for.": lambda x, b: absmax(x, b) * _step(x, b),
        },
        what="vectors",
    )


# 07.3 ------------------------------------------------------------------------------------------------


def with_zero_point(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """(codes 0 to 2**bits - 1, scale, zero) with x near scale * (codes - zero); zero is the code of 0."""
    low, high, last = x.min().clamp(max=0), x.max().clamp(min=0), 2**bits - 1
    scale = (high - low) / last
    zero = (-low / scale).round().clamp(0, last)
    codes = ((x / scale).round() + zero).clamp(0, last)
    return codes, scale, zero


@exercise(
    "07.3",
    title="Nothing stays nothing",
    difficulty=2,
    importance=2,
    minutes=8,
    hints=(
        "The grid reaches from the lowest number to the highest, and over 0: low is at most 0, high at "
        "least 0. 2**bits codes have 2**bits - 1 steps between them; one step is the scale.",
        "zero is the code that 0 gets: how many steps lie between low and 0? Round, so that it is a code.",
        "codes = round(x / scale) + zero, and none below 0 or above 2**bits - 1.",
    ),
    solution=with_zero_point,
)
def _check_zero_point(answer: Any) -> Verdict:
    cases = [(torch.tensor([-1.0, 0.0, 0.4, 2.0]), 2), astride(8), astride(4), astride(3)]
    cases += [(sign * random.uniform(0.1, 3) * torch.tensor([2.0, 3.1, 5.8, 7.0]), 3) for sign in (1, -1)]
    return on_cases(
        on_copies(answer),
        cases,
        with_zero_point,
        names=("x", "bits"),
        praise="6 of 6 vectors. Every code is used, however lopsided the numbers, and 0 is still 0.",
        mistakes={
            "0 must have a code, though all numbers lie on one side: low at most 0, high at least 0.": (
                other_grid(spans_zero=False)
            ),
            "between 2**bits codes there are 2**bits - 1 steps.": other_grid(steps=1),
            "the zero point is a code: round it.": other_grid(whole=False),
            "zero is the code of the number 0, not the lowest number.": lambda x, b: (
                *other_grid(whole=False)(x, b)[:2],
                x.min().clamp(max=0),
            ),
            "codes start at 0: add the zero point to them.": other_grid(added=False),
        },
        what="vectors",
        tolerance=1e-4,
    )


# 07.4 ------------------------------------------------------------------------------------------------


def smooth(act_absmax: Tensor, weight: Tensor, alpha: float) -> Tensor:
    """s (columns,): inputs are divided by it, the columns of weight (outputs, inputs) multiplied with it.

    For inputs and columns that are not all 0; labcore's own keeps both off 0.
    """
    return act_absmax.pow(alpha) / weight.abs().amax(0).pow(1 - alpha)


@exercise(
    "07.4",
    title="Share the trouble",
    difficulty=2,
    importance=3,
    minutes=5,
    hints=(
        "s has an entry for each input, so for each column of the weight. Over what does a column's largest "
        "magnitude run?",
        "s_j = max|x_j| ** alpha / max|w_j| ** (1 - alpha).",
    ),
    solution=smooth,
)
def _check_smooth(answer: Any) -> Verdict:
    golden = (torch.tensor([1.0, 64.0]), torch.tensor([[0.5, -0.25], [-1.0, 0.125]]), 0.5)
    cases = [golden, outlying(8, 0.5), outlying(8, 0.8), outlying(16, random.uniform(0.1, 0.4))]
    return on_cases(
        on_copies(answer),
        cases,
        smooth,
        names=("act_absmax", "weight", "alpha"),
        praise="4 of 4 layers. Inputs up to 64 over weights up to 0.25: s is 16, and both reach to 4.",
        mistakes={
            "a column's largest weight runs over the rows.": lambda x, w, a: smooth(x, w.T, a),
            "each column has its own largest.": lambda x, w, a: smooth(x, w.abs().max().expand_as(w), a),
            "a negative weight may have the largest magnitude.": lambda x, w, a: smooth(
                x, w.amax(0)[None], a
            ),
            "alpha is the inputs' power, 1 - alpha the weights'.": lambda x, w, a: smooth(x, w, 1 - a),
            "divide by the weights' power.": lambda x, w, a: x.pow(a) * w.abs().amax(0).pow(1 - a),
            "inputs are divided by s; yours is 1 / s.": lambda x, w, a: 1 / smooth(x, w, a),
        },
        what="layers",
    )


# 07.5 ------------------------------------------------------------------------------------------------


def step_time(
    batch: int, context: int, kv_per_token: float, parameters: float, bits: float, peak_flops: float,
    bandwidth: float,
) -> float:  # fmt: skip
    """Seconds of an ideal decode step with weights of so many bits: cache, then weights or arithmetic."""
    cache = batch * context * kv_per_token / bandwidth
    return cache + max(2 * batch * parameters / peak_flops, parameters * bits / 8 / bandwidth)


@exercise(
    "07.5",
    title="A quarter of the bytes",
    difficulty=2,
    importance=2,
    minutes=5,
    hints=(
        "Three times: all caches over bandwidth, weights over bandwidth, 2 FLOP a parameter and token over "
        "the peak. Which of them do fewer bits shorten?",
        "Only the weights': parameters * bits / 8 bytes. The longer of weights and arithmetic counts, and "
        "the cache's time, 16 bits as ever, comes on top.",
    ),
    solution=step_time,
)
def _check_step_time(answer: Any) -> Verdict:
    llama, a100 = (1024, 524_288, 6.74e9), (312e12, 2039e9)
    cases: list[tuple[Any, ...]] = [(1, *llama, bits, *a100) for bits in (16, 8, 4)]
    cases += [(400, *llama, 4, *a100), (random.randint(20, 60), 512, 524_288, 6.74e9, 4.5, *a100)]
    return on_cases(
        answer,
        cases,
        step_time,
        names=("batch", "context", "kv_per_token", "parameters", "bits", "peak_flops", "bandwidth"),
        praise="5 of 5 steps. Llama-2-7B on an A100 at batch 1: 6.87, 3.57, 1.92 ms. A quarter of the bits, "
        "3.6 times the speed: the cache is as large as before.",
        mistakes={
            "the cache stays in 16 bits.": lambda b, t, kv, p, n, *r: step_time(b, t, kv * n / 16, p, n, *r),
            "weights are multiplied at peak_flops, however few bits they are stored in.": (
                lambda b, t, kv, p, n, f, bw: step_time(b, t, kv, p, n, f * 16 / n, bw)
            ),
            "a byte has 8 bits.": lambda b, t, kv, p, n, *r: step_time(b, t, kv, p, 8 * n, *r),
            "each sequence has a cache of its own.": lambda b, t, kv, *r: step_time(b, t, kv / b, *r),
            "the cache's time comes on top of the longer of the other two, not inside the max.": (
                lambda b, t, kv, p, n, f, bw: max(b * t * kv / bw, step_time(b, 0, kv, p, n, f, bw))
            ),
            "weights and arithmetic overlap: the longer of them, not both.": (
                lambda b, t, kv, p, n, f, bw: (b * t * kv + p * n / 8) / bw + 2 * b * p / f
            ),
        },
        what="steps",
    )


# 07.6 ------------------------------------------------------------------------------------------------


def push_on(weight: Tensor, quantized_column: Tensor, j: int, upper: Tensor) -> Tensor:
    """The weight (rows, columns) after GPTQ's step j: column j rounded, those after it making up for that.

    quantized_column: (rows,), the rounded values of column j. upper: (columns, columns), the upper Cholesky
    factor of the inverse of H = 2/N Σ x xᵀ. Columns before j, rounded already, stay.
    """
    error = (weight[:, j] - quantized_column) / upper[j, j]
    corrected = weight.clone()
    corrected[:, j] = quantized_column
    corrected[:, j + 1 :] -= error[:, None] * upper[j, j + 1 :]
    return corrected


def _pushed(mistaken: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """The step with another factor in the place of `upper`."""
    return lambda weight, quantized, j, upper: push_on(weight, quantized, j, mistaken(upper))


def _column_kept(weight: Tensor, quantized: Tensor, j: int, upper: Tensor) -> Tensor:
    found = push_on(weight, quantized, j, upper)
    found[:, j] = weight[:, j]
    return found


@exercise(
    "07.6",
    title="Pass it on",
    difficulty=3,
    importance=2,
    minutes=10,
    hints=(
        "Each row has lost weight[:, j] - quantized_column. The columns after j can give some of that back, "
        "because their inputs resemble input j.",
        "Row j of `upper` says how much each later column moves, measured against its entry upper[j, j].",
        "Later columns lose error / upper[j, j] times upper[j, j + 1:]: a column vector times a row.",
    ),
    solution=push_on,
)
def _check_push_on(answer: Any) -> Verdict:
    upper = torch.tensor([[2.0, 1.0, -0.5], [0.0, 1.0, 0.25], [0.0, 0.0, 1.0]])
    weight = torch.tensor([[1.2, 0.4, 0.0], [-0.7, 1.0, 2.0]])
    cases = [(weight, torch.tensor([1.0, -1.0]), 0, upper)]
    cases += [midway(4, 6, j) for j in (0, random.randint(1, 4), 5)]
    return on_cases(
        on_copies(answer),
        cases,
        push_on,
        names=("weight", "quantized_column", "j", "upper"),
        praise="4 of 4 steps. What column j lost, the columns after it give back as well as they can.",
        mistakes={
            "columns after j stay as they were; row j of upper moves them (its column j is 0 there).": (
                _pushed(lambda u: u.diag().diag())
            ),
            "the error is measured against upper[j, j]: divide by it.": _pushed(
                lambda u: u.triu(1) + torch.eye(len(u))
            ),
            "divide by upper[j, j] once: it is a root already.": _pushed(
                lambda u: u.triu(1) + u.diag().square().diag()
            ),
            "that makes the error larger: later columns move the other way.": _pushed(
                lambda u: u.triu(1) - u.diag().diag()
            ),
            "all columns after j move, not the next one alone.": _pushed(lambda u: u.tril(1)),
            "column j itself becomes quantized_column.": _column_kept,
        },
        what="steps",
    )
