"""Exercises of lesson 2: the loop, the FLOPs of a prefill, where it turns, positions, the nucleus."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from labcore.config import ModelConfig
from labcore.lab.exercises.checking import Verdict, on_cases
from labcore.lab.exercises.loops import judge_loop, write
from labcore.lab.exercises.registry import exercise

# 02.1 ------------------------------------------------------------------------------------------------


@exercise(
    "02.1",
    title="Write the generation loop",
    difficulty=2,
    importance=3,
    minutes=8,
    hints=(
        "prefill(model, tokens, cache) already returns logits for a new token: your first token is "
        "its argmax.",
        "decode_step takes all the tokens known so far, (1, t), and feeds only those that the cache "
        "does not hold: "
        "append the new token to `tokens` before you call it.",
        "n tokens need one prefill and n - 1 decode steps: loop while the answer is shorter than n.",
    ),
    solution=write,
)
def _check_write(answer: Any) -> Verdict:
    return judge_loop(answer)


# 02.2 ------------------------------------------------------------------------------------------------


def prefill_flops(config: ModelConfig, n: int, *, per_product: int = 2) -> int:
    """FLOPs of all linear layers for n positions; the head for the last position alone."""
    d, heads, kv_heads = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    attention = d * (heads + 2 * kv_heads) * config.head_dim + heads * config.head_dim * d
    feed_forward = 3 * d * config.intermediate_size
    head = d * config.vocab_size
    return per_product * (n * config.num_hidden_layers * (attention + feed_forward) + head)


def _flops_all_heads(config: ModelConfig, n: int) -> int:
    return prefill_flops(config.with_(num_key_value_heads=config.num_attention_heads), n)


def _flops_full_head(config: ModelConfig, n: int) -> int:
    return prefill_flops(config, n) + 2 * (n - 1) * config.hidden_size * config.vocab_size


def _flops_no_head(config: ModelConfig, n: int) -> int:
    return prefill_flops(config, n) - 2 * config.hidden_size * config.vocab_size


def _flops_two_matrices(config: ModelConfig, n: int) -> int:
    return (
        prefill_flops(config, n)
        - 2 * n * config.num_hidden_layers * config.hidden_size * config.intermediate_size
    )


def _random_shape() -> tuple[ModelConfig, int]:
    kv_heads = random.choice((1, 2, 4))
    heads = kv_heads * random.choice((2, 4))
    head_dim = random.choice((16, 32, 64))
    config = ModelConfig(
        hidden_size=random.choice((192, 320, 512)), num_hidden_layers=random.randint(2, 12),
        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim,
        intermediate_size=random.randint(300, 900), vocab_size=random.randint(500, 2000),
    )  # fmt: skip
    return config, random.randint(2, 300)


@exercise(
    "02.2",
    title="FLOPs of a prefill",
    difficulty=2,
    importance=3,
    minutes=6,
    hints=(
        "A linear layer from `i` to `o` numbers over n positions is n·i·o multiply-adds, and a "
        "multiply-add is 2 FLOP.",
        "Per layer: q (d → h·d_h), k and v (d → h_kv·d_h each), o (h·d_h → d), and three of d × "
        "intermediate: gate, up, down. "
        "Then the head, d → vocab, for the last position only.",
    ),
    solution=prefill_flops,
)
def _check_prefill_flops(answer: Any) -> Verdict:
    return on_cases(
        answer,
        [_random_shape() for _ in range(3)],
        prefill_flops,
        names=("config", "n"),
        praise="3 of 3 shapes: this is what the cost model counts for the linear layers.",
        mistakes={
            "you count a multiply-add as one operation; here it is two.": lambda c, n: prefill_flops(
                c, n, per_product=1
            ),
            "keys and values have num_key_value_heads heads, not num_attention_heads.": _flops_all_heads,
            "only the last position needs logits: count the head once, not n times.": _flops_full_head,
            "you left out the head (hidden_size × vocab_size, once).": _flops_no_head,
            "SwiGLU has three matrices: gate, up and down; you count two.": _flops_two_matrices,
        },
        what="shapes",
        tolerance=1e-6,
    )


# 02.3 ------------------------------------------------------------------------------------------------


def crossing(peak_flops: float, bandwidth: float, bytes_per_weight: float) -> float:
    """Positions per pass at which the arithmetic on a weight takes as long as reading it."""
    return peak_flops / bandwidth * bytes_per_weight / 2


@exercise(
    "02.3",
    title="Where prefill turns compute-bound",
    difficulty=2,
    importance=3,
    minutes=5,
    hints=(
        "Per weight and pass: 2·n FLOP of arithmetic for n positions, and `bytes_per_weight` bytes "
        "read once. Write both as times.",
        "Set 2·n / peak_flops equal to bytes_per_weight / bandwidth and solve for n.",
    ),
    solution=crossing,
)
def _check_crossing(answer: Any) -> Verdict:
    cases = [
        (random.uniform(20, 900) * 1e12, random.uniform(0.3, 4) * 1e12, width)
        for width in (1.0, 2.0, 4.0, 2.0)  # of one byte alone, a mistake with the width would look like none
    ]
    return on_cases(
        answer,
        cases,
        crossing,
        names=("peak_flops", "bandwidth", "bytes_per_weight"),
        praise="4 of 4 machines. An A100 in fp16 turns at 153 positions, an A10 at 208.",
        mistakes={
            "that is the ridge point in FLOP per byte; a weight takes bytes_per_weight bytes and "
            "gives 2 FLOP per position.": (lambda f, b, w: f / b),
            "a multiply-add is 2 FLOP: half as many positions are enough.": lambda f, b, w: f / b * w,
            "you divide by the size of a weight; a wider weight takes longer to read, so it needs "
            "more positions.": (lambda f, b, w: f / b / (2 * w)),
            "you multiplied by 2 where the 2 FLOP per multiply-add divide.": lambda f, b, w: f / b * w * 2,
            "you solved for its inverse; at n = 1 the time must be all reading.": lambda f, b, w: (
                2 * b / (f * w)
            ),
        },
        what="machines",
    )


# 02.4 ------------------------------------------------------------------------------------------------


def positions(p: int, n: int, cached: bool) -> int:
    """Positions through the network for n tokens behind a prompt of p."""
    return p + n - 1 if cached else n * p + n * (n - 1) // 2


@exercise(
    "02.4",
    title="Count the positions",
    difficulty=1,
    importance=2,
    minutes=4,
    hints=(
        "With a cache every position is computed once. The last token is chosen, but never fed back.",
        "Without one, pass i (from 0) is fed p + i positions: sum that over the n passes.",
    ),
    solution=positions,
)
def _check_positions(answer: Any) -> Verdict:
    pairs = [(8, 3), (10, 50), (random.randint(2, 90), random.randint(2, 90))]
    return on_cases(
        answer,
        [(p, n, cached) for p, n in pairs for cached in (True, False)],
        positions,
        names=("p", "n", "cached"),
        praise="6 of 6 runs, as counted from the traces.",
        mistakes={
            "the last new token is never fed back: with the cache it is p + n - 1.": (
                lambda p, n, c: p + n if c else positions(p, n, False)
            ),
            "the last new token is never fed back: n - 1 of the new ones are, in both cases.": (
                lambda p, n, c: p + n if c else n * p + n * (n + 1) // 2
            ),
            "without a cache pass i is fed p + i positions, from i = 0: n·p + n(n - 1)/2.": (
                lambda p, n, c: p + n - 1 if c else n * p + n * (n + 1) // 2
            ),
            "without a cache the answer so far is fed again too, not the prompt alone.": (
                lambda p, n, c: p + n - 1 if c else n * p
            ),
            "you swapped the two cases.": lambda p, n, c: positions(p, n, not c),
        },
        what="runs",
    )


# 02.5 ------------------------------------------------------------------------------------------------


def nucleus(logits: Tensor, temperature: float, p: float) -> list[int]:
    """Tokens that top-p keeps at this temperature, likeliest first."""
    chances, order = (logits / temperature).softmax(-1).sort(descending=True)
    before = chances.cumsum(-1) - chances  # what the better tokens already hold
    return order[before < p].tolist()


def _nucleus_without_crossing(logits: Tensor, temperature: float, p: float) -> list[int]:
    chances, order = (logits / temperature).softmax(-1).sort(descending=True)
    return order[chances.cumsum(-1) <= p].tolist()


def _nucleus_by_threshold(logits: Tensor, temperature: float, p: float) -> list[int]:
    chances, order = (logits / temperature).softmax(-1).sort(descending=True)
    return order[chances >= p].tolist()


@exercise(
    "02.5",
    title="Find the nucleus",
    difficulty=2,
    importance=2,
    minutes=6,
    hints=(
        "Divide by the temperature first, softmax, sort from the likeliest down, and add up as you go.",
        "A token stays when the better ones together hold less than p; so the one that crosses p "
        "stays, and the best one always.",
    ),
    solution=nucleus,
)
def _check_nucleus(answer: Any) -> Verdict:
    stream = torch.Generator().manual_seed(random.randrange(1 << 30))
    drawn = [
        (
            torch.randn(12, generator=stream) * 2,
            random.choice((0.5, 0.7, 1.5, 2.0)),
            random.choice((0.5, 0.8, 0.9)),
        )
        for _ in range(4)
    ]
    golden = (torch.tensor([2.0, 1.0, 0.0]), 2.0, 0.9)
    return on_cases(
        answer,
        [golden, *drawn],
        nucleus,
        names=("logits", "temperature", "p"),
        praise="5 of 5 sets of logits.",
        mistakes={
            "you drop the token that crosses p; it belongs to the set, else the set holds less than "
            "p.": _nucleus_without_crossing,
            "the temperature has to act before the probabilities are added up; you ignore it.": (
                lambda x, t, p: nucleus(x, 1.0, p)
            ),
            "multiply and divide: a temperature above 1 flattens, so logits are divided by it.": (
                lambda x, t, p: nucleus(x, 1 / t, p)
            ),
            "p bounds the sum over the best tokens, not each token's own probability.": _nucleus_by_threshold,
        },
        what="sets of logits",
    )
