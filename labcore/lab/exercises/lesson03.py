"""Exercises of lesson 3: what is computed again, what is held, where attention takes over, what is copied."""

from __future__ import annotations

import random
from typing import Any

from labcore.config import ModelConfig
from labcore.lab.exercises.checking import Verdict, on_cases
from labcore.lab.exercises.registry import exercise

# 03.1 ------------------------------------------------------------------------------------------------


def again(p: int, n: int) -> int:
    """Positions computed a second time or more, for n tokens behind a prompt of p, without a cache."""
    return n * p + n * (n - 1) // 2 - (p + n - 1)


@exercise(
    "03.1",
    title="Count what is computed again",
    difficulty=2,
    importance=3,
    minutes=5,
    hints=(
        "How many positions go through the network without a cache, all passes together? Lesson 2 has it.",
        "Each position has to be computed once. How many different positions are there? The last token is "
        "chosen and never fed.",
    ),
    solution=again,
)
def _check_again(answer: Any) -> Verdict:
    cases = [(8, 3), (10, 50), (random.randint(2, 90), random.randint(2, 90))]
    return on_cases(
        answer,
        cases,
        again,
        names=("p", "n"),
        praise="3 of 3 runs: 17 of 27 positions for (8, 3), 1,666 of 1,725 for (10, 50).",
        mistakes={
            "that is all positions; those computed for the first time are not wasted.": lambda p, n: (
                n * p + n * (n - 1) // 2
            ),
            "the last token is never fed: there are p + n - 1 different positions, not p + n.": lambda p, n: (
                n * p + n * (n - 1) // 2 - (p + n)
            ),
            "the answer so far is fed again too, not the prompt alone.": lambda p, n: (n - 1) * p,
            "pass i, from 0, is fed p + i positions; you count one more for each.": lambda p, n: (
                n * p + n * (n + 1) // 2 - (p + n - 1)
            ),
        },
        what="runs",
    )


# 03.2 ------------------------------------------------------------------------------------------------


def half(parameters: int, layers: int, width: int) -> float:
    """Tokens at which a cached step spends as much on attention as on all matrices."""
    return parameters / (2 * layers * width)


@exercise(
    "03.2",
    title="Where attention takes over",
    difficulty=2,
    importance=2,
    minutes=5,
    hints=(
        "One cached step: 2 FLOP for each parameter; and for attention 2·L·d·t for the scores, as much again "
        "for the values.",
        "Set 2·P equal to 4·L·d·t and solve for t.",
    ),
    solution=half,
)
def _check_half(answer: Any) -> Verdict:
    cases = [(6_738_415_616, 32, 4096)]
    cases += [
        (random.randint(10**8, 10**11), random.randint(4, 90), 128 * random.randint(4, 90)) for _ in range(3)
    ]
    return on_cases(
        answer,
        cases,
        half,
        names=("parameters", "layers", "width"),
        praise="4 of 4 models. Llama-2-7B: 25,705 tokens, six times its context.",
        mistakes={
            "scores and values: attention is 4·L·d·t, not 2·L·d·t.": lambda p, la, d: p / (la * d),
            "a parameter costs 2 FLOP, a multiplication and an addition.": lambda p, la, d: p / (4 * la * d),
            "every layer attends.": lambda p, la, d: p / (2 * d),
        },
        what="models",
    )


# 03.3 ------------------------------------------------------------------------------------------------


def cache_bytes(
    config: ModelConfig, tokens: int, bytes_per_number: int, *, kv_heads: int | None = None
) -> int:
    """Keys and values of so many tokens in all layers."""
    heads = config.num_key_value_heads if kv_heads is None else kv_heads
    return 2 * config.num_hidden_layers * heads * config.head_dim * bytes_per_number * tokens


def _shape() -> tuple[ModelConfig, int, int]:
    kv_heads = random.choice((1, 2, 4))
    config = ModelConfig(
        hidden_size=random.choice((192, 320)), num_hidden_layers=random.randint(2, 40),
        num_attention_heads=kv_heads * random.choice((2, 4)), num_key_value_heads=kv_heads,
        head_dim=random.choice((32, 64, 128)), intermediate_size=256, vocab_size=500,
    )  # fmt: skip
    return config, random.randint(2, 5000), random.choice((1, 2, 4))


@exercise(
    "03.3",
    title="Bytes that a cache holds",
    difficulty=1,
    importance=3,
    minutes=4,
    hints=(
        "One layer keeps a key and a value of each token: vectors of head_dim numbers. How many of them?",
        "As many as there are key/value heads (num_key_value_heads), and that in every layer.",
    ),
    solution=cache_bytes,
)
def _check_bytes(answer: Any) -> Verdict:
    return on_cases(
        answer,
        [_shape() for _ in range(4)],
        cache_bytes,
        names=("config", "tokens", "bytes_per_number"),
        praise="4 of 4 shapes. Llama-2-7B in fp16 takes 524,288 bytes a token, half a MiB.",
        mistakes={
            "keys have num_key_value_heads heads, not num_attention_heads: several queries share one.": (
                lambda c, t, b: cache_bytes(c, t, b, kv_heads=c.num_attention_heads)
            ),
            "keys and values: you count one of the two.": lambda c, t, b: cache_bytes(c, t, b) // 2,
            "every layer has its own keys and values.": lambda c, t, b: (
                cache_bytes(c, t, b) // c.num_hidden_layers
            ),
            "head_dim is a number of its own here: hidden_size / num_attention_heads is something else.": (
                lambda c, t, b: (
                    2 * c.num_hidden_layers * c.num_key_value_heads
                    * (c.hidden_size // c.num_attention_heads) * b * t
                )
            ),
        },
        what="shapes",
    )  # fmt: skip


# 03.4 ------------------------------------------------------------------------------------------------


def copied(p: int, n: int, kv: int) -> int:
    """Bytes that concatenation copies for n tokens behind a prompt of p, at kv bytes a token."""
    return kv * sum(p + i for i in range(n - 1))


@exercise(
    "03.4",
    title="The price of concatenation",
    difficulty=2,
    importance=2,
    minutes=5,
    hints=(
        "The prefill finds an empty cache. A decode step copies all that is held when it begins.",
        "The first decode step finds p positions, the next p + 1. How many decode steps do n tokens take?",
    ),
    solution=copied,
)
def _check_copied(answer: Any) -> Verdict:
    cases = [
        (8, 3, 100),
        (10, 50, 512),
        (random.randint(2, 90), random.randint(2, 90), random.randint(2, 4096)),
    ]
    return on_cases(
        answer,
        cases,
        copied,
        names=("p", "n", "kv"),
        praise="3 of 3: it grows with the square of n, as the counter of the growing cache says.",
        mistakes={
            "n tokens take n - 1 decode steps: the first token comes from the prefill.": lambda p, n, kv: (
                kv * sum(p + i for i in range(n))
            ),
            "the first decode step finds p positions, not p + 1: what is new is not copied, it is written.": (
                lambda p, n, kv: kv * sum(p + i for i in range(1, n))
            ),
            "the cache grows with every step; you copy the prompt alone.": lambda p, n, kv: kv * p * (n - 1),
        },
        what="runs",
    )
