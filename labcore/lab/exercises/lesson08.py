"""Exercises of lesson 8: a static batch's waste, Little's law, chunks, whom to preempt, goodput."""

from __future__ import annotations

import math
import random
from typing import Any

from labcore.lab.exercises.checking import Verdict, on_cases
from labcore.lab.exercises.registry import exercise

# 08.1 ------------------------------------------------------------------------------------------------


def utilisation(lengths: list[int]) -> float:
    """Share of the rows that a static batch computes for somebody who still wants tokens, 0..1."""
    return sum(lengths) / (len(lengths) * max(lengths))


@exercise(
    "08.1",
    title="A static batch's waste",
    difficulty=1,
    importance=2,
    minutes=4,
    hints=(
        "How many steps does the batch take, and how many rows does each of them compute?",
        "The longest answer sets the steps. Of steps × requests rows, sum(lengths) are of use.",
    ),
    solution=utilisation,
)
def _check_utilisation(answer: Any) -> Verdict:
    cases = [([2, 6, 3, 4],), ([7, 7, 7],), ([random.randint(1, 9) for _ in range(5)] + [40],)]
    return on_cases(
        answer,
        cases,
        utilisation,
        names=("lengths",),
        praise="3 of 3 batches. [2, 6, 3, 4] leaves 62.5 % of use; equal lengths waste nothing.",
        mistakes={
            "every request has a row in every step: steps × requests rows.": lambda n: sum(n) / max(n),
            "the batch lasts as long as its longest request, not as its mean.": lambda n: 1.0,
            "that is the share wasted; asked for is the share of use.": lambda n: 1 - utilisation(n),
            "a share is a number from 0 to 1, not per cent.": lambda n: 100 * utilisation(n),
            "who is over early did get tokens: sum(lengths) rows are of use, not the shortest's.": (
                lambda n: min(n) / max(n)
            ),
        },
        what="batches",
    )


# 08.2 ------------------------------------------------------------------------------------------------


def in_flight(rate: float, ttft: float, tpot: float, tokens: int) -> float:
    """Requests that are there at once in the mean, by Little's law. rate: requests a second; times in s."""
    return rate * (ttft + (tokens - 1) * tpot)


@exercise(
    "08.2",
    title="How many at once",
    difficulty=1,
    importance=3,
    minutes=4,
    hints=(
        "Little's law: in flight = arrivals a second × seconds that each stays.",
        "It stays TTFT for the first token, and TPOT for each of the others.",
    ),
    solution=in_flight,
)
def _check_in_flight(answer: Any) -> Verdict:
    cases = [(4, 0.2, 0.030, 201), (8, 0.2, 0.030, 201), (2.5, 1.0, 0.05, 1)]
    cases += [(random.uniform(0.5, 20), random.uniform(0.1, 2), 0.02, random.randint(10, 500))]
    return on_cases(
        answer,
        cases,
        in_flight,
        names=("rate", "ttft", "tpot", "tokens"),
        praise="4 of 4 loads. 4 requests/s that stay 0.2 s + 200 · 30 ms are 24.8 in flight.",
        mistakes={
            "the first token comes with TTFT: tokens - 1 further ones.": lambda r, f, p, n: r * (f + n * p),
            "they stay until the first token, too.": lambda r, f, p, n: r * (n - 1) * p,
            "they stay until their last token, not until the first.": lambda r, f, p, n: r * f,
            "that is how long one stays; times the arrivals a second.": lambda r, f, p, n: f + (n - 1) * p,
            "that is what one place serves: more arrivals mean more in flight.": (
                lambda r, f, p, n: (f + (n - 1) * p) / r
            ),
        },
        what="loads",
    )


# 08.3 ------------------------------------------------------------------------------------------------


def chunks(prompt: int, budget: int, decodes: int) -> int:
    """Steps that a prompt takes when `decodes` others get a token each first, of `budget` tokens a step."""
    return math.ceil(prompt / (budget - decodes))


@exercise(
    "08.3",
    title="A prompt in chunks",
    difficulty=1,
    importance=2,
    minutes=3,
    hints=(
        "Who decodes goes first. What of the budget is left for the prompt?",
        "budget - decodes tokens a step; the last chunk may be smaller, and is a step all the same.",
    ),
    solution=chunks,
)
def _check_chunks(answer: Any) -> Verdict:
    cases = [(4096, 512, 8), (4096, 512, 0), (100, 512, 32), (1008, 512, 8)]
    cases += [(random.randint(2000, 9000), 256, random.randint(40, 120))]
    return on_cases(
        answer,
        cases,
        chunks,
        names=("prompt", "budget", "decodes"),
        praise="5 of 5 prompts. 4,096 tokens beside 8 decodes under a budget of 512: 9 chunks.",
        mistakes={
            "the decodes take their tokens out of the same budget.": lambda p, b, d: math.ceil(p / b),
            "the last chunk need not be full: round up.": lambda p, b, d: p // (b - d),
            "a prompt that divides evenly needs no further step.": lambda p, b, d: p // (b - d) + 1,
            "the decodes leave less for the prompt, not more.": lambda p, b, d: math.ceil(p / (b + d)),
            "chunks are whole steps: round up.": lambda p, b, d: p / (b - d),
        },
        what="prompts",
        tolerance=1e-9,
    )


# 08.4 ------------------------------------------------------------------------------------------------


def victims(held: list[int], free: int, needed: int) -> list[int]:
    """Whom to preempt so that `needed` blocks are free. held: blocks of each running request, in order of
    their turn. Returns their indices in the order in which they go: who came last goes first."""
    chosen: list[int] = []
    for index in reversed(range(len(held))):
        if free >= needed:
            break
        free += held[index]
        chosen.append(index)
    return chosen


def _until(
    order: Any, enough: Any = lambda free, needed: free >= needed, start: Any = lambda free: free
) -> Any:
    """Victims in another order, or until something else holds."""

    def pick(held: list[int], free: int, needed: int) -> list[int]:
        chosen, free = [], start(free)
        for index in order(held):
            if enough(free, needed):
                break
            free += held[index]
            chosen.append(index)
        return chosen

    return pick


def _last_first(held: list[int]) -> list[int]:
    return list(range(len(held)))[::-1]


def _one_too_few(held: list[int], free: int, needed: int) -> list[int]:
    return victims(held, free, needed)[:-1]


@exercise(
    "08.4",
    title="Whom to preempt",
    difficulty=2,
    importance=2,
    minutes=6,
    hints=(
        "Who came last has the least to lose, and nobody who was there before is ever starved by it.",
        "From the back: while too few blocks are free, take the next one and count its blocks as free.",
    ),
    solution=victims,
)
def _check_victims(answer: Any) -> Verdict:
    cases = [([4, 6, 2, 3], 1, 5), ([4, 6, 2, 3], 5, 5), ([5, 1, 1, 1], 0, 3), ([2, 9, 4, 4], 2, 4)]
    cases += [([8, 3, random.randint(2, 6), 1, random.randint(2, 6)], 1, 9)]

    def on_copies(held: list[int], free: int, needed: int) -> Any:
        return answer(list(held), free, needed)  # it may pop from its list

    return on_cases(
        on_copies if callable(answer) else answer,
        cases,
        victims,
        names=("held", "free", "needed"),
        praise="5 of 5 pools: the latest goes first, and no more go than must.",
        mistakes={
            "the first are served first: preempt from the back.": _until(lambda held: range(len(held))),
            "whose turn is last goes, however few blocks it holds.": _until(
                lambda held: sorted(range(len(held)), key=lambda i: -held[i])
            ),
            "blocks that are free already count.": _until(_last_first, start=lambda free: 0),
            "as many as are needed are enough: stop at free >= needed.": _until(
                _last_first, enough=lambda free, needed: free > needed
            ),
            "that frees too few blocks: go on until free >= needed.": _one_too_few,
            "in the order in which they go: the last one first.": lambda *a: sorted(victims(*a)),
        },
        what="pools",
    )


# 08.5 ------------------------------------------------------------------------------------------------


def goodput(records: list[tuple[float, float]], ttft: float, tpot: float, seconds: float) -> float:
    """Requests a second that kept both promises. records: each request's (TTFT, TPOT); all times in s."""
    return sum(first <= ttft and each <= tpot for first, each in records) / seconds


@exercise(
    "08.5",
    title="Goodput",
    difficulty=1,
    importance=3,
    minutes=4,
    hints=(
        "Only a request that kept both promises counts.",
        "Count them, and divide by the seconds that the run took.",
    ),
    solution=goodput,
)
def _check_goodput(answer: Any) -> Verdict:
    mixed = [(0.2, 0.03), (0.9, 0.03), (0.3, 0.08), (1.4, 0.09), (0.5, 0.05)]
    drawn = [(random.uniform(0, 1), random.uniform(0, 0.1)) for _ in range(40)]
    cases = [(mixed, 0.5, 0.05, 2.0), (mixed, 2.0, 0.04, 4.0), (drawn, 0.5, 0.05, 8.0)]
    return on_cases(
        answer,
        cases,
        goodput,
        names=("records", "ttft", "tpot", "seconds"),
        praise="3 of 3 runs. Throughput counts every answer, goodput those that were worth waiting for.",
        mistakes={
            "both promises must hold, not one of them.": (
                lambda r, f, p, s: sum(a <= f or b <= p for a, b in r) / s
            ),
            "TPOT was promised, too.": lambda r, f, p, s: sum(a <= f for a, _ in r) / s,
            "TTFT was promised, too.": lambda r, f, p, s: sum(b <= p for _, b in r) / s,
            "that is throughput: those that broke a promise do not count.": lambda r, f, p, s: len(r) / s,
            "a request that takes exactly as long as promised has kept it.": (
                lambda r, f, p, s: sum(a < f and b < p for a, b in r) / s
            ),
            "that is the share that kept it; goodput is a number a second.": (
                lambda r, f, p, s: goodput(r, f, p, 1.0) / len(r)
            ),
            "a second: divide by the seconds that the run took.": lambda r, f, p, s: goodput(r, f, p, 1.0),
        },
        what="runs",
    )
