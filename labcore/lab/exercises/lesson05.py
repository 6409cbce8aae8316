"""Exercises of lesson 5: the least time, MBU, what fusing saves, the regime's name, bytes around a ring."""

from __future__ import annotations

import random
from typing import Any

from labcore.lab.exercises.checking import Verdict, on_cases
from labcore.lab.exercises.registry import exercise

# 05.1 ------------------------------------------------------------------------------------------------


def least_time(flops: float, bytes_moved: float, peak_flops: float, bandwidth: float) -> float:
    """Seconds: arithmetic and memory work at the same time, and the slower of them decides."""
    return max(flops / peak_flops, bytes_moved / bandwidth)


@exercise(
    "05.1",
    title="Two clocks",
    difficulty=1,
    importance=3,
    minutes=3,
    hints=(
        "One clock for the arithmetic, flops / peak_flops, one for the memory, bytes_moved / bandwidth.",
        "Both run at once. The operation is over when the later of them is.",
    ),
    solution=least_time,
)
def _check_least_time(answer: Any) -> Verdict:
    cases = [(1e12, 1e9, 125e12, 600e9), (1e9, 14e9, 312e12, 2039e9)]
    cases += [(random.uniform(1e9, 1e13), random.uniform(1e7, 1e10), 1e14, 1e12) for _ in range(3)]
    return on_cases(
        answer,
        cases,
        least_time,
        names=("flops", "bytes_moved", "peak_flops", "bandwidth"),
        praise="5 of 5 operations.",
        mistakes={
            "the two run at the same time: take the longer, not the sum.": lambda f, b, F, bw: f / F + b / bw,
            "it cannot be over before the slower of the two is: the longer, not the shorter.": (
                lambda f, b, F, bw: min(f / F, b / bw)
            ),
            "arithmetic takes time too.": lambda f, b, F, bw: b / bw,
            "the bytes have to be moved too.": lambda f, b, F, bw: f / F,
            "bytes over bytes per second are seconds; yours is turned over.": (
                lambda f, b, F, bw: max(f / F, bw / b)
            ),
        },
        what="operations",
    )


# 05.2 ------------------------------------------------------------------------------------------------


def mbu(bytes_moved: float, seconds: float, bandwidth: float) -> float:
    """Share of the bandwidth that was used: between 0 and 1."""
    return bytes_moved / seconds / bandwidth


@exercise(
    "05.2",
    title="What share of memory's speed",
    difficulty=1,
    importance=3,
    minutes=2,
    hints=(
        "How many bytes per second did the step move?",
        "Divide that by what the memory could have done.",
    ),
    solution=mbu,
)
def _check_mbu(answer: Any) -> Verdict:
    cases = [(14e9, 0.014, 2e12), (5.4e8, 0.03, 3e10)]
    cases += [(random.uniform(1e8, 1e11), random.uniform(0.2, 1.0), 1e12) for _ in range(2)]
    return on_cases(
        answer,
        cases,
        mbu,
        names=("bytes_moved", "seconds", "bandwidth"),
        praise="4 of 4. 14 GB in 14 ms on 2 TB/s: 50 %.",
        mistakes={
            "a share, not per cent: 0.5 and not 50.": lambda b, s, bw: 100 * b / s / bw,
            "that is the reciprocal; a share is at most 1.": lambda b, s, bw: s * bw / b,
            "bytes per second: divide by the step's seconds, too.": lambda b, s, bw: b / bw,
        },
        what="steps",
    )


# 05.3 ------------------------------------------------------------------------------------------------


def traffic(numbers: int, operators: int, bytes_per_number: float, fused: bool) -> float:
    """Bytes: each operator reads and writes all numbers; fused, they are read and written once."""
    passes = 1 if fused else operators
    return 2 * passes * numbers * bytes_per_number


@exercise(
    "05.3",
    title="What fusing saves",
    difficulty=2,
    importance=2,
    minutes=4,
    hints=(
        "One operator reads every number once and writes every number once.",
        "Fused, what lies between the first read and the last write never sees memory.",
    ),
    solution=traffic,
)
def _check_traffic(answer: Any) -> Verdict:
    cases: list[tuple[Any, ...]] = [(10**6, 3, 2, False), (10**6, 3, 2, True)]
    cases += [
        (random.randint(10, 10**7), random.randint(2, 9), random.choice((2, 4)), fused)
        for fused in (False, True)
    ]
    return on_cases(
        answer,
        cases,
        traffic,
        names=("numbers", "operators", "bytes_per_number", "fused"),
        praise="4 of 4 chains.",
        mistakes={
            "what is computed is written, too: every pass reads and writes.": (
                lambda n, k, b, fused: n * b * (1 if fused else k)
            ),
            "fused, the numbers are read and written once, however many operators there are.": (
                lambda n, k, b, fused: 2 * k * n * b
            ),
            "apart, every operator makes its own pass.": lambda n, k, b, fused: 2 * n * b,
            "fused, nothing is read again in between.": (
                lambda n, k, b, fused: (k + 1 if fused else 2 * k) * n * b
            ),
        },
        what="chains",
    )


# 05.4 ------------------------------------------------------------------------------------------------


def regime(compute_s: float, bandwidth_s: float, communication_s: float, overhead_s: float) -> str:
    """The name of the largest term."""
    terms = {
        "compute": compute_s,
        "bandwidth": bandwidth_s,
        "communication": communication_s,
        "overhead": overhead_s,
    }
    return max(terms, key=lambda name: terms[name])


@exercise(
    "05.4",
    title="Name the regime",
    difficulty=1,
    importance=2,
    minutes=3,
    hints=(
        "A step waits for whatever takes longest.",
        "A dict from name to seconds, and max with a key.",
    ),
    solution=regime,
)
def _check_regime(answer: Any) -> Verdict:
    cases = [tuple(3.0 if i == j else 1.0 + j / 10 for j in range(4)) for i in range(4)]
    cases += [tuple(random.sample([0.1, 0.5, 1.0, 2.0], 4))]
    return on_cases(
        answer,
        cases,
        regime,
        names=("compute_s", "bandwidth_s", "communication_s", "overhead_s"),
        praise="5 of 5 steps.",
        mistakes={
            "the step waits for the longest, not for the shortest.": lambda c, b, m, o: regime(
                -c, -b, -m, -o
            ),
            "there are four, and the last two can be the longest.": (
                lambda c, b, m, o: "compute" if c > b else "bandwidth"
            ),
            "talking can be the longest of the four.": lambda c, b, m, o: regime(c, b, 0.0, o),
            "asking can be the longest of the four.": lambda c, b, m, o: regime(c, b, m, 0.0),
            "compute_s comes first, then bandwidth_s; you swapped them.": lambda c, b, m, o: regime(
                b, c, m, o
            ),
            "communication_s comes third, then overhead_s; you swapped them.": (
                lambda c, b, m, o: regime(c, b, o, m)
            ),
        },
        what="steps",
    )


# 05.5 ------------------------------------------------------------------------------------------------


def ring_bytes(bytes_: float, ranks: int) -> float:
    """Bytes that each rank sends in a ring all-reduce: (R - 1) / R of them twice."""
    return 2 * (ranks - 1) / ranks * bytes_


@exercise(
    "05.5",
    title="The ring",
    difficulty=2,
    importance=2,
    minutes=4,
    hints=(
        "Cut the message into R pieces. To add a piece up around the ring, it travels R - 1 times.",
        "Every rank sends R - 1 pieces to add up, then R - 1 pieces to hand the sums round.",
    ),
    solution=ring_bytes,
)
def _check_ring(answer: Any) -> Verdict:
    cases = [(1e6, 2), (16_384, 8), (1e6, 1), (random.randint(1000, 10**7), random.randint(3, 16))]
    return on_cases(
        answer,
        cases,
        ring_bytes,
        names=("bytes_", "ranks"),
        praise="4 of 4 rings. With many ranks it comes to twice the message, however many there are.",
        mistakes={
            "that adds up; the sums have to be handed round as well.": lambda b, r: (r - 1) / r * b,
            "nobody sends everything to everybody: a ring passes pieces of 1 / R.": lambda b, r: (r - 1) * b,
            "each rank counts for itself: do not add the ranks up.": lambda b, r: 2 * (r - 1) * b,
            "one piece stays where it is: R - 1 of R travel.": lambda b, r: 2 * b,
            "the message is cut into R pieces; it does not go out whole to every rank.": lambda b, r: b * r,
            "a single rank has nobody to send to: 0 bytes.": lambda b, r: ring_bytes(b, r) if r > 1 else b,
        },
        what="rings",
    )
