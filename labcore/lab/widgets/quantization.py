"""Lesson 7's explorers: each method's layers, and the outlier of a layer with the curves along it."""

from __future__ import annotations

from labcore.lab.figures.quantization import channels_figure, curve_figure, layers_figure
from labcore.lab.planted import FACTORS, LayerInputs
from labcore.lab.units import significant
from labcore.lab.weight_methods import IDEAS, MethodRun, Methods
from labcore.lab.widgets.common import Explorer, View, choice, slider, tabs

PICTURES = ("SmoothQuant's alpha", "AWQ's power", "channels, before and after")
WORST = 6  # layers that the table holds


def methods_explorer(found: Methods) -> None:
    """Show it: one method at a time, layer by layer."""
    make_methods(found).show()


def make_methods(found: Methods) -> Explorer:
    """The explorer, not placed yet."""
    methods = {run.method: run.recipe.method for run in found.runs}
    bits = sorted({run.bits for run in found.runs}, reverse=True)
    return Explorer(
        lambda method, bits: methods_view(found, method, bits),
        method=tabs("Method", methods, next(iter(methods.values()))),
        bits=slider("Bits", bits, bits[len(bits) // 2]),
    )


def methods_view(found: Methods, method: str, bits: int) -> View:
    """What the method does, and each layer's error beside that of rounding to nearest.

    A method that was not run with so many bits is shown with the nearest that it was.
    """
    runs = [run for run in found.runs if run.recipe.method == method]
    run = min(runs, key=lambda one: abs(one.bits - bits))
    plain = None
    if run.recipe.method != "rtn" and any(_same(one, run) for one in found.runs):
        plain = next(one for one in found.runs if _same(one, run))
    worst = sorted(run.errors, key=lambda layer: run.errors[layer], reverse=True)[:WORST]
    rows = [
        {
            "layer": layer,
            "error of the output": f"{run.errors[layer]:.2%}",
            **({"round to nearest": f"{plain.errors[layer]:.2%}"} if plain else {}),
        }
        for layer in worst
    ]
    apart = "" if run.bits == bits else f" (Run here with {run.bits} bits only.)"
    return View(layers_figure(run, plain), f"{IDEAS[method]}{apart} {_told(run, plain)}", rows)


def _same(one: MethodRun, other: MethodRun) -> bool:
    return one.recipe.method == "rtn" and one.recipe.weights == other.recipe.weights


def _told(run: MethodRun, plain: MethodRun | None) -> str:
    mean = sum(run.errors.values()) / len(run.errors)
    told = f"Here a layer's output is off by {mean:.2%} on average"
    if plain is None:
        return f"{told}."
    other = sum(plain.errors.values()) / len(plain.errors)
    return f"{told}, {other:.2%} by rounding to nearest: {significant(other / mean)}× as much."


def outlier_explorer(inputs: LayerInputs) -> None:
    """Show it: a layer, how large its outliers are, and what is drawn of it."""
    make_outliers(inputs).show()


def make_outliers(inputs: LayerInputs) -> Explorer:
    """The explorer, not placed yet."""
    layer = inputs.names[len(inputs.names) // 2]
    return Explorer(
        lambda layer, factor, picture: outlier_view(inputs, layer, factor, picture),
        layer=choice("Layer", inputs.names, layer),
        factor=slider("Outliers", FACTORS, FACTORS[-2], "× {}".format),
        picture=choice("Picture", PICTURES, PICTURES[0]),
    )


def outlier_view(inputs: LayerInputs, layer: str, factor: float, picture: str) -> View:
    """One picture of one layer with its outliers so many times as large."""
    if picture == PICTURES[2]:
        return _channels(inputs, layer, factor)
    curve = (inputs.alpha_curve if picture == PICTURES[0] else inputs.power_curve)(layer, factor)
    return View(curve_figure(curve), curve.finding(), curve.rows())


def _channels(inputs: LayerInputs, layer: str, factor: float) -> View:
    profile = inputs.profile(layer, factor)
    spread = {name: float(values.max() / values.median()) for name, values in profile.items()}
    title = f"{layer}, outliers × {factor:g}, alpha 0.5"
    told = (
        f"The largest input channel is {significant(spread['inputs'])} times the middle one; after smoothing "
        f"{significant(spread['inputs, smoothed'])} times. The weights pay: from "
        f"{significant(spread['weights'])} to {significant(spread['weights, smoothed'])} times."
    )
    rows = [{"of": name, "largest over middle channel": value} for name, value in spread.items()]
    return View(channels_figure(profile, title), told, rows)
