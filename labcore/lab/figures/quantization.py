"""Figures of lesson 7: methods on a plane of bytes and divergence, errors by layer, outliers, three ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from torch import Tensor

from labcore.lab import theme
from labcore.lab.planted import Curve
from labcore.lab.shrunk import ProductTimes, ThreeWays
from labcore.lab.weight_methods import NAMES, PUBLISHED, PUBLISHED_FULL, MethodRun, Methods
from labcore.quality.sensitivity import Sensitivity

METHOD_LOOKS = {
    method: (color, symbol)
    for method, color, symbol in zip(
        ("rtn", "gptq", "awq", "smoothquant", "llm_int8", "w8a8"),
        (theme.BLACK, theme.BLUE, theme.VERMILLION, theme.GREEN, theme.PURPLE, theme.ORANGE),
        theme.SYMBOLS,
        strict=False,
    )
}
KIND_LOOKS = {
    "qkv_proj": (theme.BLUE, "", "q, k, v"),
    "o_proj": (theme.SKY, "/", "attention output"),
    "gate_up_proj": (theme.VERMILLION, "x", "gate, up"),
    "down_proj": (theme.ORANGE, ".", "down"),
    "lm_head": (theme.GREY, "-", "head"),
}


def methods_figure(found: Methods) -> go.Figure:
    """How far the predictions move against the bytes that are left; one line for each method."""
    made = theme.figure(
        "What a byte of weights buys", x="bytes of the model (MB)", y="KL to full precision (nats a token)",
        height=420,
    )  # fmt: skip
    for method, (color, symbol) in METHOD_LOOKS.items():
        runs = [run for run in found.runs if run.recipe.method == method]
        if not runs:
            continue
        made.add_scatter(
            x=[run.quality.weight_bytes / 1e6 for run in runs],
            y=[run.quality.divergence.value for run in runs],
            name=NAMES[method],
            mode="lines+markers+text",
            text=[f"{run.bits}" for run in runs],
            textposition="top right",
            line={"color": color},
            marker={"symbol": symbol, "size": 11},
            hovertemplate=f"{NAMES[method]}, %{{text}} bits<br>%{{x:.2f}} MB, KL %{{y:.2g}}<extra></extra>",
        )
    made.update_yaxes(type="log", dtick=1, exponentformat="power")
    return made


def published_figure(found: Methods) -> go.Figure:
    """The change of perplexity by method and bits: published for a model of 7B, measured for this one."""
    labels = [f"{NAMES[method]}<br>{bits} bits" for method, bits in PUBLISHED]
    made = theme.figure("Careful rounding, published and measured", y="change of perplexity (%)", height=400)
    ours = [found.of(method, bits).change for method, bits in PUBLISHED]
    made.add_bar(
        x=labels, y=[100 * (value / PUBLISHED_FULL - 1) for value in PUBLISHED.values()],
        name="Llama-2-7B, published", marker={"color": theme.GREY, "pattern": theme.hatch("/")},
    )  # fmt: skip
    made.add_bar(
        x=labels, y=[100 * change.value for change in ours], name="this model, measured",
        marker={"color": theme.BLUE, "pattern": theme.hatch("")},
        error_y={
            "type": "data", "symmetric": False,
            "array": [100 * (change.high - change.value) for change in ours],
            "arrayminus": [100 * (change.value - change.low) for change in ours],
        },
    )  # fmt: skip
    made.update_layout(barmode="group")
    return made


def layers_figure(run: MethodRun, plain: MethodRun | None) -> go.Figure:
    """Each layer's output error; rounding to nearest at as many bits as a line of markers behind it."""
    made = theme.figure(
        f"{run.method}, {run.bits} bits: how far each layer's output is off", x="layer",
        y="error of the output (%)", height=400,
    )  # fmt: skip
    for kind, (color, pattern, name) in KIND_LOOKS.items():
        chosen = [layer for layer in run.errors if layer.endswith(kind)]
        if chosen:
            made.add_bar(
                x=[_short(layer) for layer in chosen], y=[100 * run.errors[layer] for layer in chosen],
                name=name, marker={"color": color, "pattern": theme.hatch(pattern)},
            )  # fmt: skip
    if plain is not None:
        made.add_scatter(
            x=[_short(layer) for layer in plain.errors], y=[100 * error for error in plain.errors.values()],
            name=f"round to nearest, {plain.bits} bits", mode="markers",
            marker={"symbol": "line-ew-open", "size": 16, "color": theme.BLACK, "line": {"width": 2}},
        )  # fmt: skip
    made.update_xaxes(
        categoryorder="array", categoryarray=[_short(layer) for layer in run.errors], tickangle=-60
    )
    return made


def _short(layer: str) -> str:
    """layers.3.mlp.down_proj -> "3 down"."""
    parts = layer.split(".")
    return "head" if len(parts) == 1 else f"{parts[1]} {parts[-1].removesuffix('_proj')}"


def sensitivity_figure(found: Sequence[Sensitivity], fmt: str) -> go.Figure:
    """Each layer rounded alone: what that does to the predictions."""
    made = theme.figure(
        f"One layer at a time in {fmt}", x="the layer that is rounded", y="KL (nats a token)", height=380
    )
    for kind, (color, pattern, name) in KIND_LOOKS.items():
        chosen = [one for one in found if one.name.endswith(kind)]
        if chosen:
            made.add_bar(
                x=[_short(one.name) for one in chosen], y=[one.divergence for one in chosen], name=name,
                marker={"color": color, "pattern": theme.hatch(pattern)},
            )  # fmt: skip
    order = [_short(one.name) for one in found]
    made.update_xaxes(categoryorder="array", categoryarray=order, tickangle=-60)
    made.update_yaxes(type="log", dtick=1, exponentformat="power")
    return made


def channels_figure(profile: Mapping[str, Tensor], title: str) -> go.Figure:
    """Largest magnitudes by channel, of inputs and of weights, before and after smoothing."""
    made = theme.figure(title, x="channel", y="largest magnitude", height=400)
    looks = {
        "inputs": (theme.VERMILLION, "solid"),
        "inputs, smoothed": (theme.VERMILLION, "dot"),
        "weights": (theme.BLUE, "solid"),
        "weights, smoothed": (theme.BLUE, "dot"),
    }
    for name, (color, dash) in looks.items():
        made.add_scatter(
            y=profile[name].tolist(),
            name=name,
            mode="lines",
            line={"color": color, "dash": dash, "width": 1.5},
        )
    made.update_yaxes(type="log", dtick=1, exponentformat="power")
    return made


def curve_figure(curve: Curve) -> go.Figure:
    """The error against what is searched, its least value ringed."""
    relative = curve.what.startswith("relative")
    scale, unit = (100, " (%)") if relative else (1, "")
    made = theme.figure(curve.title, x=curve.setting, y=f"{curve.what}{unit}", height=380)
    made.add_scatter(
        x=list(curve.values), y=[scale * error for error in curve.errors], name="measured",
        mode="lines+markers", line={"color": theme.BLUE}, marker={"symbol": "circle", "size": 9},
    )  # fmt: skip
    made.add_scatter(
        x=[curve.values[curve.best]], y=[scale * curve.errors[curve.best]], name="least", mode="markers",
        marker={"symbol": "circle-open", "size": 20, "color": theme.VERMILLION, "line": {"width": 3}},
    )  # fmt: skip
    made.update_yaxes(rangemode="tozero")
    return made


def three_ways_figure(found: ThreeWays) -> go.Figure:
    """How many times smaller and faster each way is; below the line it lost."""
    made = theme.figure(
        f"{found.model}: against full precision", y="times smaller or faster (1: no gain)", height=420
    )
    for way, color, pattern in zip(found.ways[1:], theme.COLORS, theme.PATTERNS, strict=False):
        times = way.times(found.full)
        made.add_bar(
            x=list(times), y=list(times.values()), name=way.weights,
            text=[f"{value:.1f}×" for value in times.values()], textposition="outside",
            marker={"color": color, "pattern": theme.hatch(pattern)},
        )  # fmt: skip
    made.add_hline(y=1, line={"color": theme.BLACK, "width": 2, "dash": "dot"})
    made.update_layout(barmode="group")
    return made


def products_figure(found: Sequence[ProductTimes], width: int) -> go.Figure:
    """One product's speed against full precision's, by number of tokens."""
    full, rest = found[0], found[1:]
    tokens = list(full.seconds)
    made = theme.figure(
        f"A product of {width} × {width}, by number of tokens", x="tokens",
        y="times as fast (1: full precision)",
        height=400,
    )  # fmt: skip
    for one, color, symbol in zip(rest, theme.COLORS, theme.SYMBOLS, strict=False):
        made.add_scatter(
            x=tokens, y=[full.seconds[n] / one.seconds[n] for n in tokens], name=one.weights,
            mode="lines+markers", line={"color": color}, marker={"symbol": symbol, "size": 9},
            text=[one.paths[n] for n in tokens], hovertemplate="%{y:.2g}×, path %{text}<extra></extra>",
        )  # fmt: skip
    made.add_hline(y=1, line={"color": theme.BLACK, "width": 2, "dash": "dot"})
    made.update_xaxes(type="log", tickvals=tokens, ticktext=[str(n) for n in tokens])
    made.update_yaxes(type="log", dtick=1, exponentformat="none")
    return made
