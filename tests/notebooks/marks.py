"""How a drawn figure tells its traces apart: what of a plotly figure's JSON is read without its colours."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

from tests.notebooks.contrast import ENOUGH, colour, ratio

LIGHTNESS = 3.0
Trace = dict[str, Any]
Figure = dict[str, Any]
Axes = tuple[str, str]


def only_by_colour(figure: Figure) -> list[str]:
    """Pairs of traces in one pair of axes, and traces with several colours, that only colour tells apart.

    Colours that differ in lightness by a contrast of 3 or more tell enough (WCAG 2's technique G183).
    """
    traces = list(_with_defaults(figure))
    found = []
    for left, right in itertools.combinations(traces, 2):
        same_place = _axes(left) == _axes(right) and left["type"] == right["type"]
        if (
            same_place
            and _hue_only(left, right)
            and _mark(left) == _mark(right)
            and not _labelled(left, right)
        ):
            found.append(f"{left.get('name')} / {right.get('name')}: {_mark(left)}")
    return found + [str(trace.get("name")) for trace in traces if not _points_differ(trace)]


def _with_defaults(figure: Figure) -> Iterator[Trace]:
    """Traces with what the template gives the n-th of its type."""
    template, seen = figure["layout"].get("template", {}).get("data", {}), dict[str, int]()
    for trace in figure["data"]:
        kind = trace.get("type", "scatter")
        number = seen[kind] = seen.get(kind, -1) + 1
        given = template.get(kind) or [{}]
        marker = _merged(given[number % len(given)].get("marker", {}), trace.get("marker", {}))
        if kind in ("scatter", "bar"):
            yield {**trace, "type": kind, "marker": marker, "number": number}


def _merged(default: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    return {**default, **own, "pattern": {**default.get("pattern", {}), **own.get("pattern", {})}}


def _axes(trace: Trace) -> Axes:
    return trace.get("xaxis", "x"), trace.get("yaxis", "y")


def _colour(trace: Trace) -> str:
    """A trace's colour; the template's colours go by number."""
    own = trace["marker"].get("color") or trace.get("line", {}).get("color") or trace.get("fillcolor")
    return str(own if own is not None else trace["number"])


def _hue_only(left: Trace, right: Trace) -> bool:
    one, other = _colour(left), _colour(right)
    if one == other:
        return False
    known = one.startswith("#") and other.startswith("#")
    return not known or ratio(colour(one), colour(other)) < LIGHTNESS


def _labelled(left: Trace, right: Trace) -> bool:
    """Whether they lie on rows or columns of their own, which the axis names."""
    pairs = [(_names(left.get(axis)), _names(right.get(axis))) for axis in "xy"]
    return any(a and b and not set(a) & set(b) for a, b in pairs)


def _mark(trace: Trace) -> tuple[Any, ...]:
    """What tells it from others without colour."""
    marker, line = trace["marker"], trace.get("line", {})
    if trace["type"] == "bar":
        return ("bar", str(marker["pattern"].get("shape", "")), trace.get("offset"), _written(trace))
    mode = trace.get("mode", "lines")
    symbol = str(marker.get("symbol", "circle")) if "markers" in mode else None
    stroke = (line.get("dash", "solid"), line.get("shape")) if "lines" in mode else None
    return (mode, symbol, stroke, str(trace.get("fillpattern")), bool(trace.get("fill")), _written(trace))


def _written(trace: Trace) -> Any:
    """Text at its points."""
    text = trace.get("text") if trace["type"] == "bar" or "text" in trace.get("mode", "") else None
    return str(text) if text else None


def _points_differ(trace: Trace) -> bool:
    """Whether points that differ in colour differ in pattern, symbol, outline, text or name, too."""
    marker = trace["marker"]
    colours = marker.get("color")
    if not isinstance(colours, list) or len(set(map(str, colours))) < 2:
        return True
    along = trace.get("y" if trace.get("orientation") == "h" else "x")
    others = [marker["pattern"].get("shape"), marker.get("symbol"), trace.get("text"), _names(along)]
    others.append(marker.get("line", {}).get("width"))
    return any(_tells(colours, other) for other in others)


def _names(along: Any) -> Any:
    """Names along the axis of bars; numbers are no names."""
    return along if isinstance(along, list) and all(isinstance(one, str) for one in along) else None


def _tells(colours: list[Any], other: Any) -> bool:
    """Whether points that differ in colour differ in `other`."""
    if not isinstance(other, list) or len(other) != len(colours):
        return False
    pairs = list(zip(map(str, colours), map(str, other), strict=True))
    return all(a[0] == b[0] or a[1] != b[1] for a, b in itertools.combinations(pairs, 2))


def faint_in_figure(figure: Figure) -> list[str]:
    """Text on bars, on markers and on the card of less contrast than enough."""
    pairs = [*_on_card(figure), *(pair for trace in _with_defaults(figure) for pair in _on_marks(trace))]
    return [
        f"{what}: {ink} on {ground}"
        for what, ink, ground in pairs
        if ratio(colour(ink), colour(ground)) < ENOUGH
    ]


def _on_card(figure: Figure) -> Iterator[tuple[str, str, str]]:
    layout = figure["layout"]
    card = layout["template"]["layout"]["paper_bgcolor"]
    ink = layout["template"]["layout"]["font"]["color"]
    yield "text", ink, card
    for note in layout.get("annotations", []):
        if re.search(r"\w", note.get("text") or ""):
            yield note["text"], note.get("font", {}).get("color", ink), note.get("bgcolor", card)


def _on_marks(trace: Trace) -> Iterator[tuple[str, str, str]]:
    """Text within bars and markers; plotly itself chooses white or #444 in bars whose font has no colour."""
    texts = trace.get("text")
    inside = trace.get("textposition", "auto") != "outside" if trace["type"] == "bar" else _centred(trace)
    if not texts or not inside:
        return
    font = trace.get("insidetextfont", {}) if trace["type"] == "bar" else trace.get("textfont", {})
    grounds = trace["marker"].get("color")
    shown = texts if isinstance(texts, list) else [texts]
    inks = font.get("color", "#FFFFFF" if trace["type"] == "bar" else "#2B2B2B")
    for text, ink, ground in zip(shown, _each(inks, shown), _each(grounds, shown), strict=True):
        if isinstance(ground, str) and text:
            yield f"{trace.get('name')}: {text}", ink, ground


def _centred(trace: Trace) -> bool:
    both = {"markers", "text"} <= set(trace.get("mode", "").split("+"))
    return both and "center" in trace.get("textposition", "middle center").split()[1:]


def _each(one: Any, texts: list[Any]) -> list[Any]:
    """One setting for each text."""
    return one if isinstance(one, list) else [one] * len(texts)
