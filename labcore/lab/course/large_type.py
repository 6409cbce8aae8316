"""Figures and text as large as a projector needs, in one kernel: nothing of the lab has to know of it.

Every output of a cell passes through a hook on its way to the page. A figure's letters become larger there,
and with them its height, its margins and its symbols; widgets and tables follow a style sheet.
"""

from __future__ import annotations

from typing import Any

from IPython.core.getipython import get_ipython
from IPython.display import HTML, display

from labcore.lab.display import PLOTLY_MIME

SMALLEST = 20  # pixels, on a screen of 1920 × 1080
_FIGURE, _HEIGHT = 1.6, 1.45  # times the letters, times the height
_FONTS = ("font", "tickfont", "textfont", "titlefont", "insidetextfont", "outsidetextfont", "grouptitlefont")
_STYLE = f"""<style>
.jp-OutputArea :is(table, th, td, pre, .labcore-note, .labcore-note *, div, span, b, button, label,
input, select) {{ font-size: max({SMALLEST}px, 1em) !important; }}
.jupyter-widgets button, .jupyter-widgets input, .jupyter-widgets label, .jupyter-widgets select,
.widget-label, .widget-readout, .widget-toggle-button {{
  font-size: {SMALLEST}px !important; height: auto !important; line-height: 1.5 !important; }}
.jupyter-widgets.widget-button, .widget-toggle-buttons button {{ width: auto !important; padding: 2px 14px; }}
.widget-hslider, .widget-hbox {{ height: auto !important; }}
.labcore-note, .labcore-solution {{ line-height: 1.4 !important; }}
</style>"""


def large_type() -> None:
    """Make what this kernel shows from now on legible from the back of a room."""
    shell = get_ipython()
    if shell is None:
        return
    shell.display_pub.register_hook(_enlarge_message)
    display(HTML(_STYLE))


def _enlarge_message(message: dict[str, Any]) -> dict[str, Any]:
    """A display message as it is sent, with larger figures in it."""
    data = message["content"].get("data", {})
    if PLOTLY_MIME in data:
        data[PLOTLY_MIME] = enlarged(data[PLOTLY_MIME])
    return message


def enlarged(figure: dict[str, Any]) -> dict[str, Any]:
    """A plotly figure (as JSON data) with letters of at least `SMALLEST` pixels, in proportion otherwise."""
    made: dict[str, Any] = _larger_fonts(figure)
    layout = made.setdefault("layout", {})
    layout["height"] = round(layout.get("height", 450) * _HEIGHT)
    template = layout.get("template", {}).get("layout", {})
    for holder in (layout, template):
        if "margin" in holder:
            holder["margin"] = {
                side: round(width * _FIGURE) if isinstance(width, (int, float)) else width
                for side, width in holder["margin"].items()
            }
    return made


def _larger_fonts(value: Any) -> Any:
    if isinstance(value, list):
        return [_larger_fonts(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    return {
        name: _larger(entry) if name in _FONTS and isinstance(entry, dict) else _larger_fonts(entry)
        for name, entry in value.items()
    }


def _larger(font: dict[str, Any]) -> dict[str, Any]:
    size = font.get("size")
    if not isinstance(size, (int, float)):
        return font
    return {**font, "size": max(SMALLEST, round(size * _FIGURE))}
