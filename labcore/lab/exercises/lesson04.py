"""Exercises of lesson 4: what fits, what blocks waste, which keys a window sees, what 4 bits really take."""

from __future__ import annotations

import math
import random
from typing import Any

import torch
from torch import Tensor

from labcore.lab.exercises.checking import Verdict, on_cases
from labcore.lab.exercises.registry import exercise

# 04.1 ------------------------------------------------------------------------------------------------


def sequences(memory: int, weights: int, per_token: int, context: int, block_size: int) -> int:
    """Sequences of `context` tokens whose blocks fit beside the weights."""
    blocks = math.ceil(context / block_size)
    return max(0, memory - weights) // (blocks * block_size * per_token)


def _rounded_down(m: int, w: int, kv: int, t: int, b: int) -> int:
    return max(0, m - w) // max(1, t // b * b * kv)


@exercise(
    "04.1",
    title="How many fit",
    difficulty=2,
    importance=3,
    minutes=6,
    hints=(
        "What is left beside the weights is divided among sequences. How many bytes does one of them take?",
        "A sequence takes whole blocks: as many as it needs for `context` tokens, the last one "
        "perhaps in part.",
    ),
    solution=sequences,
)
def _check_sequences(answer: Any) -> Verdict:
    cases = [(24 * 10**9, 14 * 10**9, 524_288, 4096, 16), (10 * 10**9, 14 * 10**9, 1000, 100, 16)]
    cases += [
        (
            random.randint(20, 90) * 10**9,
            random.randint(2, 15) * 10**9,
            131_072,
            random.randint(100, 5000) * 2 + 1,
            256,
        )
        for _ in range(3)
    ]
    return on_cases(
        answer,
        cases,
        sequences,
        names=("memory", "weights", "per_token", "context", "block_size"),
        praise="5 of 5 plans. Llama-2-7B on an A10: 4 sequences of 4,096 tokens.",
        mistakes={
            "a sequence takes whole blocks; you let it take part of one.": lambda m, w, kv, t, b: (
                max(0, m - w) // (t * kv)
            ),
            "the last block is needed too, though it is not full: round up.": _rounded_down,
            "the weights are in the same memory.": lambda m, w, kv, t, b: sequences(m, 0, kv, t, b),
            "where the weights alone do not fit nothing does: 0, not less.": lambda m, w, kv, t, b: (
                (m - w) // (math.ceil(t / b) * b * kv)
            ),
        },
        what="plans",
    )


# 04.2 ------------------------------------------------------------------------------------------------


def visible(query: int, window: int) -> list[int]:
    """Positions that the query at this position sees."""
    return list(range(max(0, query - window + 1), query + 1))


@exercise(
    "04.2",
    title="Through the window",
    difficulty=1,
    importance=2,
    minutes=4,
    hints=(
        "A window of 1 shows a query nothing but itself.",
        "The first position in sight is query - window + 1, if that is not before the text.",
    ),
    solution=visible,
)
def _check_visible(answer: Any) -> Verdict:
    cases = [(5, 3), (1, 4), (0, 1), (random.randint(20, 90), random.randint(2, 15))]
    return on_cases(
        answer,
        cases,
        visible,
        names=("query", "window"),
        praise="4 of 4 queries.",
        mistakes={
            "the query's own position counts: a window of w shows w positions, not w + 1.": lambda q, w: list(
                range(max(0, q - w), q + 1)
            ),
            "a query sees itself.": lambda q, w: list(range(max(0, q - w), q)),
            "there are no positions before 0.": lambda q, w: list(range(q - w + 1, q + 1)),
        },
        what="queries",
    )


# 04.3 ------------------------------------------------------------------------------------------------


def effective_bits(bits: int, group: int) -> float:
    """Bits of a stored number, with its share of a scale and a lowest value of 16 bits each."""
    return bits + 32 / group


@exercise(
    "04.3",
    title="What four bits take",
    difficulty=1,
    importance=3,
    minutes=3,
    hints=(
        "Each group of numbers brings two numbers of 16 bits along: its scale and its lowest value.",
        "Share those 32 bits among the numbers of the group.",
    ),
    solution=effective_bits,
)
def _check_bits(answer: Any) -> Verdict:
    cases = [(4, 32), (8, 128), (2, random.choice((16, 32, 64)))]
    return on_cases(
        answer,
        cases,
        effective_bits,
        names=("bits", "group"),
        praise="3 of 3: int4 in groups of 32 takes 5 bits, a quarter more than its name.",
        mistakes={
            "two numbers of 16 bits go with each group, scale and lowest value.": lambda b, g: b + 16 / g,
            "the scale belongs to a group, not to each number.": lambda b, g: b + 32.0,
            "scale and lowest value have to be stored too.": lambda b, g: float(b),
        },
        what="formats",
    )


# 04.4 ------------------------------------------------------------------------------------------------


def victim(sums: Tensor, recent: int) -> int:
    """The position that heavy hitters drop: the least attended of those that are not among the newest."""
    return int(sums[: len(sums) - recent].argmin())


@exercise(
    "04.4",
    title="Who has to go",
    difficulty=2,
    importance=2,
    minutes=5,
    hints=(
        "The newest positions are safe, however little they were attended to: they had no time to be.",
        "Leave out the last `recent` entries and take the index of the smallest sum.",
    ),
    solution=victim,
)
def _check_victim(answer: Any) -> Verdict:
    stream = torch.Generator().manual_seed(random.randrange(1 << 30))
    cases = [(torch.tensor([3.0, 0.2, 1.0, 0.1]), 1)]
    cases += [(torch.rand(12, generator=stream), random.randint(2, 6)) for _ in range(4)]
    return on_cases(
        answer,
        cases,
        victim,
        names=("sums", "recent"),
        praise="5 of 5 budgets.",
        mistakes={
            "the newest positions are safe; you drop one of them.": lambda s, r: int(s.argmin()),
            "the heavy ones stay: it is the smallest sum that goes.": lambda s, r: int(
                s[: len(s) - r].argmax()
            ),
            "that is the oldest; heavy hitters look at sums, not at age.": lambda s, r: 0,
        },
        what="budgets",
    )
