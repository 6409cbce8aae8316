"""Lesson 5's two explorers: turn a knob, look at a step's timeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from labcore.lab.figures.regimes import knob_figure, timeline_figure
from labcore.lab.regimes import KnobSweep
from labcore.lab.widgets.common import Explorer, View, choice, slider
from labcore.perf.profile import Profile

TOP = 8


def knobs(sweeps: Sequence[KnobSweep]) -> None:
    """Show them: one measured sweep at a time, its knob to be turned."""
    make_knobs(sweeps).show()


def make_knobs(sweeps: Sequence[KnobSweep]) -> Explorer:
    """The explorer, not placed yet."""
    names = {f"{sweep.knob}: {sweep.what}": index for index, sweep in enumerate(sweeps)}
    positions = range(max(len(sweep.points) for sweep in sweeps))
    return Explorer(
        lambda knob, position: knob_view(sweeps[knob], position),
        knob=choice("Knob", names, 0),
        position=slider("Position", list(positions), 0, lambda value: str(value + 1)),
    )


def knob_view(sweep: KnobSweep, position: int = 0) -> View:
    """Figure, finding and numbers of one knob; past its last position it stays there."""
    at = min(position, len(sweep.points) - 1)
    return View(knob_figure(sweep, at), f"{sweep.told(at)} {sweep.finding()}", sweep.rows())


def timeline(profiles: Sequence[Profile]) -> None:
    """Show the operations of one profiled step at a time."""
    make_timeline(profiles).show()


def make_timeline(profiles: Sequence[Profile]) -> Explorer:
    """The explorer, not placed yet."""
    names = {one.label: index for index, one in enumerate(profiles)}
    return Explorer(lambda step: timeline_view(profiles[step]), step=choice("Step", names, len(profiles) - 1))


def timeline_view(one: Profile) -> View:
    """The timeline, what the step waits for, and its longest operations."""
    rows: list[dict[str, Any]] = [
        {"operation": op.name, "kind": op.kind, "calls": op.calls, "time (µs)": op.seconds * 1e6}
        for op in one.top[:TOP]
    ]
    told = f"This step waits for {one.regime.name}. {one.regime.sentence[0].upper()}{one.regime.sentence[1:]}"
    return View(timeline_figure(one), told, rows)
