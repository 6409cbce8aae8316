"""What papers report of serving, beside what was measured here, and how much of it scheduling can explain."""

from __future__ import annotations

from typing import Any

from labcore import catalog
from labcore.lab.serving_fleet import FLEETS
from labcore.lab.serving_lengths import LengthsRun, harmonic
from labcore.lab.serving_paper import PUBLISHED
from labcore.lab.serving_rates import RateSweep
from labcore.lab.serving_stall import ChunkStall
from labcore.lab.units import significant
from labcore.serving.simulator import Part, RooflineCost

BATCHES = (2, 4, 8, 16, 32)


def most_rows() -> list[dict[str, Any]]:
    """The most that continuous batching gains by scheduling alone: H_B, at exponential lengths."""
    return [
        {
            "batch": batch,
            "of use, static (%)": f"{100 / harmonic(batch):.1f}",
            "continuous at most": f"{harmonic(batch):.2f}×",
        }
        for batch in BATCHES
    ]


def check_rows(context: int = 1024) -> list[dict[str, Any]]:
    """Llama-2-7B on an A100: a step that checks k guesses beside the one that draws a single token."""
    config, gpu = catalog.architecture("llama-2-7b"), catalog.gpu("a100-80gb-sxm")
    cost = RooflineCost(config, gpu)
    one = cost.seconds([Part(context, 1)])
    rows = []
    for guesses in (0, 1, 4, 8, 64):
        step = cost.seconds([Part(context, 1 + guesses)])
        ratio = f"{step / one:.2f}"
        rows.append({"guesses": guesses, "step (ms)": f"{step * 1e3:.2f}", "× one token": ratio})
    return rows


def beside_ours(
    lengths: LengthsRun, sweep: RateSweep, stall: ChunkStall, fleets: RateSweep
) -> list[dict[str, Any]]:
    """Each published gain with what came out here, and what the two have in common."""
    whole, small = stall.stalls[0], stall.stalls[-1]
    ours = {
        "Orca (iteration-level scheduling)": (
            _over(sweep, "continuous", "static"),
            "goodput at the highest rate, over static",
        ),
        "continuous batching with vLLM": (
            f"{significant(lengths.gain('exponential')[1])}×",
            f"seconds, static over continuous, one engine for both; H_{lengths.places} = "
            f"{harmonic(lengths.places):.2f} is the most",
        ),
        "Sarathi-Serve (chunked prefill)": (
            f"{significant(whole.worst_s / small.worst_s)}×",
            f"worst gap of the others, whole over {small.name}",
        ),
        "DistServe (prefill and decode apart)": (
            _over(fleets, list(FLEETS)[-1], next(iter(FLEETS))),
            "simulated goodput at the highest rate, over two that do both",
        ),
    }
    return [
        {"system": system, "published": gain, "over": against, "here": here, "of what": what}
        for system, gain, against, _ in PUBLISHED
        for here, what in (ours.get(system, ("–", "kernels and memory, which all runs here share")),)
    ]


def _over(sweep: RateSweep, one: str, other: str) -> str:
    """Goodput of one over another's at the highest rate."""
    runs = sweep.runs[sweep.rates[-1]]
    good, less = runs[one].summary.goodput or 0.0, runs[other].summary.goodput or 0.0
    return f"{significant(good / less)}×" if less else f"{significant(good)}/s over none"


def scheduling_finding(lengths: LengthsRun) -> str:
    """The 23x claim, taken apart with what was measured here."""
    steps, seconds = lengths.gain("exponential")
    same = lengths.gain("constant")[1]
    return (
        "Published: 23×, of which scheduling alone at most 3.6×. Here one engine ran both: "
        f"{significant(steps)}× the steps and {significant(seconds)}× the seconds at unlike lengths, "
        f"{significant(same)}× at equal ones. The rest of the 23 lies in kernels and in memory, not in the "
        "order of the work."
    )
