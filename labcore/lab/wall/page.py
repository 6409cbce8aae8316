"""The wall as a page that asks its server every two seconds, or as a file that asks nobody."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import plotly

from labcore.lab import tables
from labcore.lab.wall.entry import Entry
from labcore.lab.wall.figures import panels
from labcore.lab.wall.panel import Panel, count

EMPTY = "nobody has shared yet"
_MOST_FAULTS = 5  # named on the page; more would hide the figures


def wall_data(entries: Sequence[Entry], faults: Sequence[str]) -> dict[str, Any]:
    """What the page draws: a headline, the panels, and sentences about files that are no entries."""
    return {
        "headline": count(len(entries), "learner") if entries else EMPTY,
        "faults": _told(faults),
        "panels": [_as_json(panel) for panel in panels(entries)] if entries else [],
    }


def _told(faults: Sequence[str]) -> list[str]:
    rest = len(faults) - _MOST_FAULTS
    more = [f"{count(rest, 'more file')} in the folder {'is' if rest == 1 else 'are'} no entries."]
    return [*faults[:_MOST_FAULTS], *(more if rest > 0 else [])]


def _as_json(panel: Panel) -> dict[str, Any]:
    return {
        "title": panel.title,
        "figure": json.loads(panel.figure.to_json()),
        "finding": panel.finding,
        "table": tables.as_html(panel.rows, panel.title) if panel.rows else "",
    }


def page_html(how: str, data: dict[str, Any] | None = None) -> str:
    """The page. Without `data` it asks its own server for it, again and again; with it, it is whole.

    how: what learners type to share; empty for a page that takes no more.
    """
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    template = jinja2.Environment(loader=loader, autoescape=True).get_template("wall.html")
    fixed = json.dumps(data).replace("<", "\\u003c") if data else ""
    return template.render(how=how, fixed=fixed, plotly=plotly_script() if data else "")


@lru_cache(maxsize=1)
def plotly_script() -> str:
    """plotly.js as it came with the Python package: the page asks no other host for it."""
    script = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    return script.read_text(encoding="utf-8")


def how_to_share(to: str, code: str = "") -> str:
    """What learners type."""
    return f"labcore wall share --to {shlex.quote(to)}" + (f" --code {shlex.quote(code)}" if code else "")
