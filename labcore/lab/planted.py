"""The outlier story, on the embedded model with planted outliers: what breaks, what saves it, and the curves
that the methods search along."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import labcore
from labcore import quality
from labcore.lab.units import significant
from labcore.lab.weight_methods import Methods, as_perplexity, fresh
from labcore.model import Model
from labcore.quant import Format, plant_outliers, quantize
from labcore.quant.awq import search_scale
from labcore.quant.calibration import calibration_tokens, layer_by_layer
from labcore.quant.smoothquant import search_alpha, smoothing

FACTORS = (1, 10, 30, 100)
RECIPES = ("w8a8", "w8a8:activations=tensor", "smoothquant", "llm_int8", "int8", "int4", "awq-int4")
INPUTS = 512  # of a layer that curves are drawn over
STEPS = 11
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
# OPT-175B as the paper prints it (Xiao et al. 2023): average perplexity, activations per tensor and static.
PUBLISHED = (
    ("full precision", "full precision", 10.99),
    ("w8a8", "naive W8A8", 93_080.0),
    ("smoothquant", "SmoothQuant", 11.17),
)


@dataclass(frozen=True)
class Planted:
    """A twin that computes the same, with channels whose inputs are `factor` times as large."""

    model: Model
    channels: tuple[int, ...]
    factor: float
    difference: float  # largest difference of logits, relative to the largest logit

    def finding(self) -> str:
        """That nothing changed, and what did."""
        return (
            f"{len(self.channels)} of {self.model.config.hidden_size} channels are {self.factor:g} times as "
            f"large now (channels {', '.join(map(str, self.channels))}), the weights that read them as much "
            f"smaller. The logits differ by at most {self.difference:.1e} of the largest: in full precision "
            "it is the same model."
        )


def plant(model: Model, *, channels: int = 4, factor: float = 100.0, seed: int = 0) -> Planted:
    """A copy with planted outliers, and the proof that it computes the same."""
    twin = fresh(model)
    picked = plant_outliers(twin, channels=channels, factor=factor, seed=seed)
    tokens = calibration_tokens(model, None)[0][:128]
    before, after = (labcore.logits(one, tokens) for one in (model, twin))
    difference = float((after - before).abs().max() / before.abs().max())
    return Planted(twin, tuple(picked), factor, difference)


def outlier_rows(found: Methods) -> list[dict[str, Any]]:
    """Every recipe on the planted twin, activations named."""
    rows: list[dict[str, Any]] = [
        {"recipe": "full precision", "activations": "–", "perplexity": as_perplexity(found.full), "KL": 0.0}
    ]
    for run in found.runs:
        rows.append(
            {
                "recipe": run.recipe.label,
                "activations": f"8 bits per {run.recipe.activations}" if run.recipe.activations else "full",
                "perplexity": as_perplexity(run.quality),
                "KL": run.quality.divergence.value,
            }
        )
    return rows


def outlier_finding(found: Methods) -> str:
    """How naive rounding breaks and by how little the others stay off."""
    by_label = {run.recipe.label: run.quality.perplexity.value for run in found.runs}
    full = found.full.perplexity.value
    return (
        f"Full precision {full:.3f}. Naive W8A8 takes the perplexity to "
        f"{significant(by_label['w8a8'])}, with one scale for all tokens to "
        f"{significant(by_label['w8a8:activations=tensor'])}; SmoothQuant brings it back to "
        f"{by_label['smoothquant']:.3f}, LLM.int8() to {by_label['llm_int8']:.3f}, with the same 8 bits."
    )


def published_outliers(found: Methods) -> list[dict[str, Any]]:
    """OPT-175B as published beside the planted twin as measured."""
    ours = {run.recipe.method: run.quality for run in reversed(found.runs)} | {"full precision": found.full}
    return [
        {
            "weights and activations": name,
            "OPT-175B, published": f"{perplexity:,}",
            "planted twin, measured": as_perplexity(ours[key]),
        }
        for key, name, perplexity in PUBLISHED
    ]


def published_finding(found: Methods) -> str:
    """How far each broke, and came back."""
    exact, naive, smooth = (perplexity for _, _, perplexity in PUBLISHED)
    broke = found.of("w8a8", 8).quality.perplexity.value / found.full.perplexity.value
    back = found.of("smoothquant", 8).quality.perplexity.value / found.full.perplexity.value
    return (
        f"Published: naive W8A8 makes the perplexity {significant(naive / exact)} times as large, "
        f"SmoothQuant {smooth / exact:.3f} times. Here: {significant(broke)} and {back:.3f} times."
    )


@dataclass(frozen=True)
class Curve:
    """A search: what is turned, how far off the result is at each value, and the value where it is least.

    title: whose curve. what: the error's name; a relative one, or nats a token.
    """

    title: str
    setting: str
    what: str
    values: tuple[float, ...]
    errors: tuple[float, ...]

    @property
    def best(self) -> int:
        """Where the error is least."""
        return min(range(len(self.errors)), key=self.errors.__getitem__)

    @property
    def is_u(self) -> bool:
        """Whether the least error lies between the ends, and both ends are a tenth worse at least."""
        least = self.errors[self.best]
        return 0 < self.best < len(self.errors) - 1 and min(self.errors[0], self.errors[-1]) > 1.1 * least

    def finding(self) -> str:
        """The best value against both ends."""
        shape = "A U: both ends are worse." if self.is_u else "No U: the best value lies near an end."
        first, best, last = (significant(self.errors[at]) for at in (0, self.best, -1))
        return (
            f"{self.title}: {self.what} {first} at {self.setting} {self.values[0]:.2g}, {best} at "
            f"{self.values[self.best]:.2g}, {last} at {self.values[-1]:.2g}. {shape}"
        )

    def rows(self) -> list[dict[str, Any]]:
        """The exact numbers."""
        return [
            {self.setting: f"{value:.2g}", self.what: error}
            for value, error in zip(self.values, self.errors, strict=True)
        ]


def alpha_sweep(
    planted: Planted, alphas: Sequence[float] = ALPHAS, *, stories: int, calibration: Sequence[str]
) -> Curve:
    """SmoothQuant over the whole twin: one scale for each matrix and one, known before, for its inputs.

    That is the coarsest of the paper's levels (O3), where alpha matters most.
    """
    errors = []
    for alpha in tqdm(alphas, desc="smoothing", file=sys.stdout, leave=False):
        twin = fresh(planted.model)
        recipe = f"smoothquant-int8:granularity=tensor,alpha={alpha},activations=static"
        quantize(twin, recipe, calibration=calibration, progress=False)
        found = quality.weight_quality(twin, planted.model, stories=stories, questions=0)
        errors.append(found.divergence.value)
    title = "SmoothQuant over all layers, one scale a matrix"
    return Curve(title, "alpha", "KL (nats a token)", tuple(alphas), tuple(errors))


@dataclass(frozen=True)
class LayerInputs:
    """Layers that read normalised activations: their weights, and inputs of the calibration texts."""

    model: Model
    channels: tuple[int, ...]
    inputs: dict[str, Tensor]

    @cached_property
    def names(self) -> list[str]:
        """In the order of the model."""
        return list(self.inputs)

    def enlarged(self, layer: str, factor: float) -> tuple[Tensor, Tensor]:
        """(weight, inputs) with the channels' inputs `factor` times as large and the weights as they are.

        That is what a layer of a large model meets. The output is not the model's any more; errors are of it.
        """
        linear = self.model.transformer.get_submodule(layer)
        assert isinstance(linear, nn.Linear)
        scale = torch.ones(linear.in_features)
        scale[list(self.channels)] = factor
        return linear.weight.detach().float().cpu(), self.inputs[layer] * scale

    def alpha_curve(self, layer: str, factor: float) -> Curve:
        """SmoothQuant's: both sides in 8 bits, a scale for each token, at alphas from 0 to 1."""
        weight, inputs = self.enlarged(layer, factor)
        _, curve = search_alpha(weight, inputs, Format())
        return _curve(f"SmoothQuant on {layer}, outliers × {factor:g}", "alpha", weight, inputs, curve)

    def power_curve(self, layer: str, factor: float, bits: int = 4) -> Curve:
        """AWQ's: weights in few bits, inputs as they are, at powers from 0 on."""
        weight, inputs = self.enlarged(layer, factor)
        _, curve = search_scale(weight, inputs, Format(f"int{bits}", "group", 64), steps=STEPS)
        return _curve(f"AWQ on {layer}, outliers × {factor:g}", "power", weight, inputs, curve)

    def profile(self, layer: str, factor: float, alpha: float = 0.5) -> dict[str, Tensor]:
        """(columns,) largest magnitudes: inputs and weights before and after SmoothQuant at alpha."""
        weight, inputs = self.enlarged(layer, factor)
        largest = inputs.abs().amax(0)
        s = smoothing(largest, weight, alpha)
        return {
            "inputs": largest,
            "weights": weight.abs().amax(0),
            "inputs, smoothed": largest / s,
            "weights, smoothed": (weight * s).abs().amax(0),
        }


def _curve(
    title: str, setting: str, weight: Tensor, inputs: Tensor, curve: Sequence[tuple[float, float]]
) -> Curve:
    """Mean squared errors of an output number, as shares of the output's own size."""
    size = float((inputs @ weight.T).square().mean())
    values, errors = zip(*curve, strict=True)
    relative = tuple((error / size) ** 0.5 for error in errors)
    return Curve(title, setting, "relative error of the output", tuple(values), relative)


@torch.inference_mode()
def layer_inputs(model: Model, channels: Sequence[int], calibration: Sequence[str]) -> LayerInputs:
    """What the layers behind a norm read of these texts: qkv and gate/up of every layer."""
    rows = calibration_tokens(model, calibration)
    found: dict[str, Tensor] = {}
    for number, seen in layer_by_layer(model.transformer, rows, hessians=False):
        for name, inputs in seen.items():
            if name.endswith(("qkv_proj", "gate_up_proj")):
                sample = inputs.sample
                picks = torch.linspace(0, len(sample) - 1, INPUTS).long()
                found[f"layers.{number}.{name}"] = sample[picks].cpu()
    return LayerInputs(model, tuple(channels), found)
