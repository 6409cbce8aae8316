"""Compared runs as one page: a panel for each kind of measurement, a colour and a marker for each run.

The page needs no network, and holds the numbers as tables too.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labcore.bench import suite_plot
from labcore.bench.compare import Compared, Measurement
from labcore.bench.suite_rows import Row
from labcore.serving.load.plots import OFFLINE

if TYPE_CHECKING:
    import plotly.graph_objects as go

TITLE = "Runs beside each other"
STYLE = """body{font-family:system-ui,sans-serif;max-width:1100px;margin:24px auto;padding:0 16px;
color:#2B2B2B;background:#FCFCFA}table{border-collapse:collapse;margin:8px 0 24px}
td,th{padding:3px 14px 3px 0;text-align:left;
border-bottom:1px solid #E4E4E0}caption{text-align:left;font-weight:bold}"""


def compared_figure(found: Compared) -> go.Figure:
    """A line for each thing measured, a point for each run, named with device, versions and date.

    Raises LabError where plotly is not installed.
    """
    labels = {run.name: run.label for run in found.runs}
    rows = [
        Row(one.section, one.name, labels[point.run.name], point.value, one.unit, one.higher_is_better)
        for one in found.measurements
        for point in one.points
    ]
    return suite_plot.suite_figure(rows, title=TITLE, a_line=1)


def panel_rows(found: Compared) -> dict[str, list[dict[str, Any]]]:
    """What the figure shows, exactly: for each panel its title and the rows of a table."""
    panels: dict[str, list[dict[str, Any]]] = {}
    for one in found.measurements:
        panels.setdefault(panel_title(one), []).extend(_rows(one))
    return panels


def panel_title(one: Measurement) -> str:
    """ "decode: tokens/s, higher is better"."""
    return suite_plot.panel_title(one.section, one.unit, one.higher_is_better)


def _rows(one: Measurement) -> list[dict[str, Any]]:
    first = one.points[0].run.name
    return [
        {
            "what": one.name, "run": point.run.name, "model": point.model, "device": point.run.device,
            "versions": point.run.software, "measured": point.run.date, "value": point.value,
            f"times {first}'s": one.ratio(point),
        }
        for point in one.points
    ]  # fmt: skip


def write_page(found: Compared, path: Path) -> None:
    """Write the page, whole or not at all. Raises LabError without plotly, or where the disk refuses."""
    from labcore.lab import tables
    from labcore.lab.results import write_whole

    drawn = compared_figure(found).to_html(config=dict(OFFLINE), include_plotlyjs=True, full_html=False)
    notes = "".join(f"<p>{escape(note)}</p>" for note in found.notes)
    numbers = "".join(
        f"<h2>{escape(title)}</h2>{tables.as_html(rows, title)}" for title, rows in panel_rows(found).items()
    )
    write_whole(
        path,
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{TITLE}</title>'
        f"<style>{STYLE}</style></head><body><main><h1>{TITLE}</h1>{notes}{drawn}{numbers}</main></body></html>\n",
    )
