"""Lesson 8's pictures of gains: at unlike lengths, by shared prefixes, by guessing; and of prices."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from labcore.lab import theme
from labcore.lab.serving_guesses import SpeculationGain
from labcore.lab.serving_lengths import LengthsRun
from labcore.lab.serving_plans import Plan
from labcore.lab.serving_reuse import PrefixGain
from labcore.lab.units import significant


def lengths_figure(found: LengthsRun) -> go.Figure:
    """Share of the computed rows that was of use, by kind of lengths and policy, and static in theory."""
    made = theme.figure(f"Batches of {found.places}: rows that were of use", y="of use (%)", height=340)
    kinds = [f"{kind} lengths" for kind in found.runs]
    for index, policy in enumerate(next(iter(found.runs.values()))):
        made.add_bar(
            x=kinds, y=[100 * runs[policy].utilisation for runs in found.runs.values()], name=policy,
            text=[f"{100 * runs[policy].utilisation:.0f} %" for runs in found.runs.values()],
            textposition="outside",
            marker={"color": theme.COLORS[1 - index], "pattern": theme.hatch(theme.PATTERNS[index])},
        )  # fmt: skip
    made.add_scatter(
        x=kinds, y=[100 * found.theory(kind) for kind in found.runs], mode="markers",
        name="static, in theory",
        marker={"symbol": "diamond", "size": 12, "color": theme.BLACK},
    )  # fmt: skip
    made.update_yaxes(range=[0, 112])
    return made


def prefix_figure(found: PrefixGain) -> go.Figure:
    """The wait for the first token, request by request, without and with a prefix cache."""
    made = theme.figure(
        f"{len(found.cached.ttft_s)} prompts that begin with the same {found.shared} tokens",
        x="request", y="first token (ms)", height=340,
    )  # fmt: skip
    for index, (name, run) in enumerate((("no prefix cache", found.without), ("prefix cache", found.cached))):
        made.add_bar(
            x=list(range(1, len(run.ttft_s) + 1)), y=[ttft * 1e3 for ttft in run.ttft_s], name=name,
            marker={"color": theme.COLORS[1 - index], "pattern": theme.hatch(theme.PATTERNS[index])},
        )  # fmt: skip
    made.update_xaxes(type="category")
    return made


def guesses_figure(found: SpeculationGain) -> go.Figure:
    """Each way of guessing: fewer steps, longer steps, and what both make of the speed; below 1× it hangs."""
    made = theme.figure("Guessing: fewer steps, longer steps", y="× without guesses", height=360)
    plain = found.plain
    names = [way.name for way in found.ways]
    for index, (name, values) in enumerate(
        {
            "fewer steps": [len(plain.events) / len(way.run.events) for way in found.ways],
            "a step with guesses takes": [way.step_cost(plain) for way in found.ways],
            "as fast": [plain.summary.duration_s / way.run.summary.duration_s for way in found.ways],
        }.items()
    ):
        made.add_bar(
            x=names, y=[value - 1 for value in values], base=1, name=name,
            text=[f"{significant(value)}×" for value in values], textposition="outside",
            marker={"color": theme.COLORS[index], "pattern": theme.hatch(theme.PATTERNS[index])},
        )  # fmt: skip
    made.add_hline(y=1, line={"color": theme.BLACK, "width": 1})
    longest = max(max(bar.y) for bar in made.data)
    made.update_yaxes(range=[-0.12 * longest, 1.14 * longest + 1])
    made.update_traces(cliponaxis=False)
    return made


def plan_figure(plans: Sequence[Plan]) -> go.Figure:
    """Dollars an hour for one load, by kind of GPU; the number of GPUs stands in the bar."""
    made = theme.figure("What the load costs", y="$/h", height=340)
    known = [plan.row() for plan in plans]
    for index, name in enumerate(("at its peaks", f"{significant(plans[0].factor)}× slower")):
        counts = [row[f"GPUs, {name}"] for row in known]
        made.add_bar(
            x=[plan.gpu for plan in plans], y=[row[f"$/h, {name}"] or 0 for row in known], name=name,
            text=[
                "no number is enough" if count is None else f"{count} GPU{'s' * (count > 1)}"
                for count in counts
            ],
            textposition="outside",
            marker={"color": theme.COLORS[index], "pattern": theme.hatch(theme.PATTERNS[index])},
        )  # fmt: skip
    made.update_traces(cliponaxis=False)
    return made
