"""The recomputation grid: a generation stepped through, with the cache on and off."""

from __future__ import annotations

from labcore.generation import Trace
from labcore.lab.figures.recompute import counter_rows, grid_figure
from labcore.lab.widgets.common import Explorer, View, choice, stepper


def recomputation_grid(traces: dict[str, Trace]) -> None:
    """Show it; `traces` are those of `traced_both`."""
    make(traces).show()


def make(traces: dict[str, Trace]) -> Explorer:
    """The explorer, not placed yet."""
    return Explorer(
        lambda step, cache: grid_view(traces, step, cache),
        step=stepper("Step", len(traces["on"].steps), 1),
        cache=choice("Cache", {"off": "off", "on": "on"}, "off"),
    )


def grid_view(traces: dict[str, Trace], step: int, cache: str) -> View:
    """Figure, finding and counters of one step."""
    rows = counter_rows(traces, step)
    mine = next(row for row in rows if row["cache"] == cache)
    fed = traces[cache].steps[step].input_shape[1]
    finding = (
        f"Step {step} with the cache {cache}: {fed} of {traces[cache].steps[step].context} rows are "
        f"computed. So far {mine['of them again']} of {mine['positions computed']} positions were computed "
        f"again, {mine['FLOP so far']}FLOP were spent and {mine['bytes held']} are held."
    )
    return View(grid_figure(traces[cache], step, cache), finding, rows)
