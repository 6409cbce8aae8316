"""Lesson 1: a TPOT that a slow first token makes worse."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from labcore.lab.exercises.checking import Verdict
from labcore.lab.hunts.registry import planted
from labcore.lab.units import seconds


@planted(
    "01.A",
    title="a TPOT that moves with the first token",
    target="labcore.lab.live:stream_metrics",
    bug=(("(latency - ttft) / (n - 1)", "latency / n"),),
    minutes=5,
    hints=(
        "Feed it three steps by hand: 1.0 s, then 0.1 s and 0.1 s. What should TPOT be, and what do you get?",
        "TPOT is the mean of the gaps between tokens. Which of the steps is not a gap, and how many gaps do "
        "n tokens have?",
    ),
)
def check_stream_metrics(suspect: Callable[..., Any]) -> Verdict:
    draw = Random()
    steps = [draw.uniform(0.2, 0.6)] + [draw.uniform(0.01, 0.03) for _ in range(draw.randint(8, 40))]
    try:
        plain, slow = suspect(steps), suspect([steps[0] * 3, *steps[1:]])
        even = suspect([0.02] * 10)
        single = suspect([0.5])
    except Exception as error:
        return Verdict(0, 4, f"It raises {type(error).__name__} on a list of step times: {error}.")
    rebuilt = plain.ttft_s + (plain.tokens - 1) * plain.tpot_s
    properties = (
        (
            abs(slow.tpot_s - plain.tpot_s) < 1e-9,
            f"A first token three times as late ({seconds(steps[0])} → {seconds(steps[0] * 3)}) moves TPOT "
            f"from {seconds(plain.tpot_s)} to {seconds(slow.tpot_s)}; TPOT is about the time after it.",
        ),
        (
            abs(rebuilt - plain.latency_s) < 1e-9,
            f"TTFT + (n - 1) · TPOT gives {seconds(rebuilt)} and the answer took {seconds(plain.latency_s)}.",
        ),
        (abs(even.tpot_s - 0.02) < 1e-9, f"Ten steps of 20 ms each have a TPOT of {seconds(even.tpot_s)}."),
        (
            single.tpot_s is None,
            f"A single token has no gap, and its TPOT is {single.tpot_s!r} instead of None.",
        ),
    )
    right = sum(1 for holds, _ in properties if holds)
    wrong = " ".join(sentence for holds, sentence in properties if not holds)
    praise = "A late first token leaves TPOT alone, and TTFT + (n - 1) · TPOT is the latency again."
    return Verdict(right, len(properties), wrong or praise)
