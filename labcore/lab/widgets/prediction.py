"""The box of a prediction: the question, the answer, a button that locks it."""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets

from labcore.errors import LabError
from labcore.lab.display import Bundle, Region, note_bundle
from labcore.lab.predictions import Prediction
from labcore.lab.widgets.common import place


def show_prediction(asked: Prediction) -> None:
    """Place the question with its answer and lock; the state is plain output, so that it survives export."""
    answer = _answer(asked)
    lock = widgets.Button(description="Lock my answer", icon="lock", button_style="primary")
    again = widgets.Button(description="Change it", icon="unlock")
    lock.add_class("labcore-lock")
    answer.add_class("labcore-answer")
    state = Region()

    def refresh() -> None:
        answer.disabled = lock.disabled = asked.locked
        again.disabled = not asked.locked
        state.show(_state(asked))

    def locked(_: Any) -> None:
        try:
            asked.lock(answer.value)
        except LabError as error:
            state.show(note_bundle(str(error), "bad"))
            return
        refresh()

    def unlocked(_: Any) -> None:
        asked.locked = False
        refresh()

    lock.on_click(locked)
    again.on_click(unlocked)
    refresh()
    row = [answer, lock, again]
    layout = widgets.Layout(flex_flow="row wrap", align_items="center")
    place(widgets.HBox(row, layout=layout), f"prediction {asked.id}, answer and lock")


def _answer(asked: Prediction) -> widgets.ValueWidget:
    style = {"description_width": "initial"}
    if asked.options:
        style["button_width"] = "max-content"
        return widgets.ToggleButtons(
            options=list(asked.options), value=asked.value, description="My answer", style=style
        )
    low = asked.low if asked.low is not None else -1e308
    high = asked.high if asked.high is not None else 1e308
    return widgets.BoundedFloatText(
        value=float(asked.value), min=low, max=high, description=f"My answer ({asked.unit})", style=style
    )


def _state(asked: Prediction) -> Bundle:
    label = f"Predict {asked.id}."
    if asked.locked:
        return note_bundle(f"{asked.question}\nLocked: {asked.text}.", "note", label)
    text = f"{asked.question}\nNothing locked yet; as it stands, {asked.text} is scored."
    return note_bundle(text, "quiet", label)
