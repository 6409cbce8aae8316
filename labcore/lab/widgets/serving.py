"""Lesson 8's explorers: a policy's Gantt chart, steps through the block map, a slider over measured rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from labcore.lab.figures.serving import gantt_figure, rate_figure
from labcore.lab.figures.serving_blocks import map_figure
from labcore.lab.serving_rates import RateSweep
from labcore.lab.serving_runs import PolicyRun
from labcore.lab.serving_spans import Holding, events_and_arrivals, holdings, spans, turning_points
from labcore.lab.units import seconds as as_time
from labcore.lab.units import significant
from labcore.lab.widgets.common import Explorer, View, slider, stepper, tabs
from labcore.serving import StepEvent


def policy_explorer(runs: Mapping[str, PolicyRun]) -> None:
    """Show it: pick a policy, see its requests over time."""
    make_policy_explorer(runs).show()


def make_policy_explorer(runs: Mapping[str, PolicyRun]) -> Explorer:
    """The explorer, not placed yet. All policies share one time axis."""
    end = max(span.end_s for run in runs.values() for span in spans(run.events, run.arrivals))
    first = next(iter(runs))
    return Explorer(
        lambda policy: gantt_view(runs[policy], end),
        policy=tabs("Policy", {name: name for name in runs}, first),
    )


def gantt_view(run: PolicyRun, end_s: float | None = None) -> View:
    """Figure, finding and the run's numbers."""
    return View(gantt_figure(run, end_s=end_s), run.finding(), [run.row()])


def serving_blocks(run: PolicyRun | Sequence[StepEvent]) -> None:
    """Show it: who holds which block, step by step (steps in which nothing changes are left out)."""
    make_blocks(run).show()


def make_blocks(run: PolicyRun | Sequence[StepEvent]) -> Explorer:
    """The explorer, not placed yet; it begins where most blocks are in use."""
    found = turning_points(holdings(events_and_arrivals(run)[0]))
    ids = list(dict.fromkeys(id for holding in found for id in holding.blocks))
    fullest = max(range(len(found)), key=lambda at: found[at].used)
    change = stepper("Change of the map", len(found), fullest)
    return Explorer(lambda change: blocks_view(found[change], ids), change=change)


def blocks_view(holding: Holding, ids: Sequence[str] | None = None) -> View:
    """Figure, finding and who holds what."""
    return View(map_figure(holding, ids), holding.finding(), holding.rows())


def rate_explorer(sweep: RateSweep) -> None:
    """Show it: a slider over the measured rates."""
    make_rates(sweep).show()


def make_rates(sweep: RateSweep) -> Explorer:
    """The explorer, not placed yet."""
    rates = sweep.rates
    return Explorer(
        lambda rate: rate_view(sweep, rate),
        rate=slider("Offered (requests/s)", rates, rates[len(rates) // 2], show=significant),
    )


def rate_view(sweep: RateSweep, rate: float) -> View:
    """Figure with the rate marked, what each policy did at it, and the exact numbers."""
    told = []
    for policy, run in sweep.runs[rate].items():
        found = run.summary
        wait = f", first token p99 {as_time(found.ttft.p99)}" if found.ttft else ""
        told.append(f"{policy} kept the promise for {100 * found.attainment:.0f} %{wait}")
    rows = [row for row in sweep.rows() if row["offered (requests/s)"] == rate]
    return View(rate_figure(sweep, rate), f"{significant(rate)} requests/s: {'; '.join(told)}.", rows)
