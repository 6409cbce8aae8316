"""Controls with visible labels, and the explorer: up to three controls over one pure view.

A view is a function from settings to a figure, a finding and rows. What it returns is published as
ordinary output below the controls (see `display.Region`), so that the last state survives export.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import plotly.graph_objects as go

from labcore.errors import LabError
from labcore.lab import tables
from labcore.lab.display import (
    Region,
    figure_bundle,
    finding_bundle,
    html_bundle,
    note_bundle,
    publish,
    title_of,
)

MAX_CONTROLS = 3
_STYLE = {"description_width": "initial"}


@dataclass(frozen=True)
class View:
    """What one setting of the controls shows: a figure (or HTML), one sentence, the exact numbers."""

    figure: go.Figure | str
    finding: str
    rows: tables.Rows = ()


@dataclass(frozen=True)
class Control:
    """A setting: `source` holds its value, `box` is what stands on the page (the same, or around it)."""

    source: widgets.ValueWidget
    box: widgets.DOMWidget

    @property
    def value(self) -> Any:
        """The setting as the view receives it."""
        return self.source.value


def choice(label: str, options: Sequence[str] | Mapping[str, Any], value: Any) -> Control:
    """A drop-down. `options`: names, or a mapping from shown text to value."""
    pairs = list(options.items()) if isinstance(options, Mapping) else list(options)
    layout = widgets.Layout(width="max-content", min_width="260px")
    made = widgets.Dropdown(options=pairs, value=value, description=label, style=_STYLE, layout=layout)
    return Control(made, made)


def tabs(label: str, options: Mapping[str, Any], value: Any) -> Control:
    """One button beside the other, one of them pressed. `options`: shown text to value."""
    made = widgets.ToggleButtons(options=list(options.items()), value=value, description=label, style=_STYLE)
    made.style.button_width = "max-content"
    return Control(made, made)


def slider(label: str, values: Sequence[Any], value: Any, show: Callable[[Any], str] = str) -> Control:
    """A slider over listed values (so that 1, 2, 4, 8 … are evenly spaced); acts when released."""
    made = widgets.SelectionSlider(
        options=[(show(entry), entry) for entry in values],
        value=value,
        description=label,
        continuous_update=False,
        style=_STYLE,
        layout=widgets.Layout(width="min(560px, 95%)"),
    )
    return Control(made, made)


def stepper(label: str, count: int, value: int = 0) -> Control:
    """Previous and Next around a slider over 0 … count - 1, for walking through steps."""
    place = widgets.IntSlider(
        value=value,
        min=0,
        max=count - 1,
        description=label,
        continuous_update=False,
        style=_STYLE,
        layout=widgets.Layout(width="min(420px, 70%)"),
    )
    previous = widgets.Button(description="Previous", icon="arrow-left", layout=widgets.Layout(width="110px"))
    following = widgets.Button(description="Next", icon="arrow-right", layout=widgets.Layout(width="110px"))
    previous.add_class("labcore-previous")
    following.add_class("labcore-next")

    def move(by: int) -> Callable[[Any], None]:
        def moved(_: Any) -> None:
            place.value = min(max(place.value + by, 0), count - 1)

        return moved

    previous.on_click(move(-1))
    following.on_click(move(+1))
    return Control(
        place, widgets.HBox([previous, following, place], layout=widgets.Layout(flex_flow="row wrap"))
    )


class Explorer:
    """Controls over a view. `show()` places them; moving one redraws what is below them.

    `tabs` groups more controls than one page should show: title -> name -> control.
    """

    def __init__(
        self,
        view: Callable[..., View],
        *,
        tabs: Mapping[str, Mapping[str, Control]] | None = None,
        **controls: Control,
    ) -> None:
        self._groups: Mapping[str, Mapping[str, Control]] = tabs or {"": controls}
        if max(len(group) for group in self._groups.values()) > MAX_CONTROLS:
            raise ValueError(f"a part of a lesson has at most {MAX_CONTROLS} controls")
        self._view = view
        self.controls = {name: control for group in self._groups.values() for name, control in group.items()}
        self._picture, self._words = Region(), Region()
        for name, control in self.controls.items():
            control.box.add_class(f"labcore-{name}")
            control.source.observe(self._changed, names="value")

    @property
    def settings(self) -> dict[str, Any]:
        """The controls' values, as the view receives them."""
        return {name: control.value for name, control in self.controls.items()}

    def show(self) -> None:
        """Place the controls, and below them the view of their present settings."""
        pages = [widgets.VBox([c.box for c in group.values()]) for group in self._groups.values()]
        box = widgets.Tab(pages, titles=list(self._groups)) if len(pages) > 1 else pages[0]
        place(box, "controls")
        self.draw()

    def draw(self) -> None:
        """Show the view of the present settings; what labcore refuses is shown as its sentence."""
        try:
            view = self._view(**self.settings)
        except LabError as error:
            self._picture.show(note_bundle(str(error), "bad"))
            self._words.show(html_bundle("", ""))  # nothing of the setting before stays beside it
            return
        self._picture.show(_picture_bundle(view))
        self._words.show(finding_bundle(view.finding, view.rows, title_of(view.figure)))

    def _changed(self, _: Any) -> None:
        self.draw()


def place(widget: widgets.DOMWidget, what: str) -> None:
    """Put a widget on the page; where widgets are not shown, one line says that a kernel is needed."""
    data = widget._repr_mimebundle_() or {}
    publish({**data, "text/plain": f"[{what}: they work where this notebook has a running kernel]"})


def _picture_bundle(view: View) -> dict[str, Any]:
    if isinstance(view.figure, str):
        return html_bundle(view.figure, "[drawing]")
    return figure_bundle(view.figure)
