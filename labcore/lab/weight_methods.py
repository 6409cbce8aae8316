"""The embedded model under each way of rounding its weights: bytes, perplexity, recall, error by layer."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import labcore
from labcore import quality
from labcore.lab.units import si, significant
from labcore.model import Model
from labcore.quality import Estimate, WeightQuality
from labcore.quality.sensitivity import Sensitivity
from labcore.quant import Format, QuantLinear, Recipe, Report, quantize
from labcore.quant.calibration import calibration_tokens
from labcore.quant.calibration import story_texts as calibration_texts
from labcore.quant.quantizing import relative_error

# Each method in one sentence: what it does before, or instead of, rounding to nearest.
IDEAS = {
    "rtn": "Round to nearest: every weight to the nearest code, without a look at what it will meet.",
    "gptq": "GPTQ rounds column by column and lets the columns to the right make up for each error, as the "
    "inputs' second moments say they can.",
    "awq": "AWQ stretches the columns that meet large inputs before rounding, so that they get finer steps, "
    "and clips each group where that helps.",
    "smoothquant": "SmoothQuant moves the difficulty of large activations into the weights, a factor a "
    "column, then rounds both sides to 8 bits.",
    "llm_int8": "LLM.int8() multiplies the few columns with huge inputs in full precision and all others in "
    "8 bits on both sides.",
    "w8a8": "Naive W8A8 rounds weights and activations to 8 bits, each token by its largest number.",
}
RECIPES = (
    "int8", "w8a8", "smoothquant", "llm_int8",
    "int4", "gptq-int4", "awq-int4",
    "int3", "gptq-int3", "awq-int3",
)  # fmt: skip
NAMES = {
    "rtn": "round to nearest", "gptq": "GPTQ", "awq": "AWQ", "smoothquant": "SmoothQuant",
    "llm_int8": "LLM.int8()", "w8a8": "naive W8A8",
}  # fmt: skip
# Perplexity of Llama-2-7B on WikiText-2, groups of 128, as AWQ's authors print it (Lin et al. 2024).
PUBLISHED = {
    ("rtn", 4): 5.73, ("gptq", 4): 5.69, ("awq", 4): 5.60,
    ("rtn", 3): 6.66, ("gptq", 3): 6.43, ("awq", 3): 6.24,
}  # fmt: skip
PUBLISHED_FULL = 5.47


@dataclass(frozen=True)
class MethodRun:
    """One recipe: what quantizing reported, and what held-out text says.

    change: of perplexity, relative. errors: of each linear layer's output alone, relative.
    """

    recipe: Recipe
    report: Report
    quality: WeightQuality
    change: Estimate
    errors: dict[str, float]

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self.recipe.weights.bits

    @property
    def method(self) -> str:
        """Its name as papers write it."""
        return NAMES[self.recipe.method]


@dataclass(frozen=True)
class Methods:
    """All recipes on the same texts and questions, against full precision."""

    full: WeightQuality
    runs: tuple[MethodRun, ...]

    def of(self, method: str, bits: int) -> MethodRun:
        """One of them, such as ("gptq", 3)."""
        return next(run for run in self.runs if (run.recipe.method, run.bits) == (method, bits))

    def rows(self) -> list[dict[str, Any]]:
        """The exact numbers."""
        first: dict[str, Any] = {
            "weights": "full precision", "bits": None, "bits with scales": None,
            "model": si(self.full.weight_bytes, "B"), "perplexity": as_perplexity(self.full),
            "change": "–", "KL (nats a token)": 0.0, "recall (%)": _percent(self.full.recall),
        }  # fmt: skip
        return [first, *(_row(run) for run in self.runs)]

    def finding(self) -> str:
        """What 8 bits cost, and what the methods are worth at the fewest bits."""
        int8, bits = self.of("rtn", 8), min(run.bits for run in self.runs)
        told = ", ".join(f"{run.method} {_signed(run.change.value)}" for run in self.runs if run.bits == bits)
        apart = [run for run in self.runs if run.recipe.method == "llm_int8"]
        tail = (
            f" LLM.int8() ends at {apart[0].report.bits_per_weight:.1f} bits a weight: it keeps every column "
            f"whose inputs reach {apart[0].recipe.threshold:g} in full precision."
        )
        return (
            f"8 bits change the perplexity by {_signed(int8.change.value)} (95 % of redraws: "
            f"{_signed(int8.change.low)} to {_signed(int8.change.high)}). At {bits} bits: {told}."
            f"{tail if apart else ''}"
        )


def _row(run: MethodRun) -> dict[str, Any]:
    change = run.change
    return {
        "weights": run.method,
        "bits": run.bits,
        "bits with scales": f"{run.report.bits_per_weight:.2f}",
        "model": si(run.quality.weight_bytes, "B"),
        "perplexity": as_perplexity(run.quality),
        "change": f"{_signed(change.value)} [{_signed(change.low)}, {_signed(change.high)}]",
        "KL (nats a token)": run.quality.divergence.value,
        "recall (%)": _percent(run.quality.recall),
    }


def as_perplexity(found: WeightQuality) -> str:
    """With the digits that small changes need."""
    value = found.perplexity.value
    return f"{value:.4f}" if value < 10 else significant(value)


def _signed(change: float) -> str:
    return f"{change:+.2%}"


def _percent(found: Estimate | None) -> float | None:
    return None if found is None else found.value * 100


def fresh(model: Model) -> Model:
    """A copy with weights of its own, to be changed."""
    return Model(
        model.name, model.config, copy.deepcopy(model.transformer), model.tokenizer, model.random_weights
    )


def weigh_methods(
    model: Model,
    recipes: Sequence[str] = RECIPES,
    *,
    stories: int,
    questions: int,
    calibration: Sequence[str] | None = None,
    seed: int = 0,
) -> Methods:
    """Quantize a copy of the model by each recipe and hold it against the model, by definition.

    calibration: texts that methods look at (default: all of the model's own). Raises ConfigError for a
    recipe that does not fit the model.
    """
    inputs = linear_inputs(model, calibration_texts(2))
    sizes: dict[str, Any] = {"stories": stories, "questions": questions, "seed": seed}
    full = quality.weight_quality(model, model, **sizes)
    runs = []
    with tqdm(total=len(recipes), desc="quantizing and reading", file=sys.stdout, leave=False) as bar:
        for recipe in recipes:
            bar.set_postfix_str(recipe)
            one, wanted = fresh(model), Recipe.parse(recipe)
            texts = calibration if wanted.needs_calibration else None
            report = quantize(one, wanted, calibration=texts, progress=False)
            found = quality.weight_quality(one, model, **sizes)
            change = quality.perplexity_change(found, full)
            runs.append(MethodRun(wanted, report, found, change, output_errors(one, model, inputs)))
            bar.update()
    return Methods(full, tuple(runs))


@torch.inference_mode()
def linear_inputs(model: Model, texts: Sequence[str]) -> dict[str, Tensor]:
    """What each linear layer of a model reads of some texts, (tokens, columns), by the layer's name."""
    found: dict[str, list[Tensor]] = {}
    linears = {name: m for name, m in model.transformer.named_modules() if isinstance(m, nn.Linear)}
    hooks = [
        linear.register_forward_pre_hook(
            lambda _, inputs, name=name: found.setdefault(name, []).append(inputs[0].flatten(0, -2))
        )
        for name, linear in linears.items()
    ]
    try:
        for ids in calibration_tokens(model, texts):
            labcore.logits(model, ids)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: torch.cat(parts) for name, parts in found.items()}


@torch.inference_mode()
def output_errors(one: Model, full: Model, inputs: Mapping[str, Tensor]) -> dict[str, float]:
    """How far each quantized layer's output is off, relative to the output, on the same inputs."""
    errors = {}
    for name, x in inputs.items():
        layer, linear = (m.transformer.get_submodule(name) for m in (one, full))
        if isinstance(layer, QuantLinear):
            errors[name] = relative_error(layer.reference(x), linear(x))
    return errors


def published_methods(found: Methods) -> list[dict[str, Any]]:
    """Llama-2-7B as published beside the embedded model as measured: change of perplexity by method."""
    rows = []
    for (method, bits), perplexity in PUBLISHED.items():
        ours = found.of(method, bits)
        rows.append(
            {
                "weights": f"{NAMES[method]}, {bits} bits",
                "Llama-2-7B, published (groups of 128)": perplexity,
                "published change": _signed(perplexity / PUBLISHED_FULL - 1),
                f"this model, groups of {ours.recipe.weights.group}": as_perplexity(ours.quality),
                "measured change": _signed(ours.change.value),
            }
        )
    return rows


def order_finding(found: Methods, bits: int) -> str:
    """Whether careful rounding beats rounding to nearest at so many bits, and whether that is noise."""
    plain, told = found.of("rtn", bits), []
    for method in ("awq", "gptq"):
        one = found.of(method, bits)
        gap = quality.perplexity_change(one.quality, plain.quality)
        sure = gap.high < 0 or gap.low > 0
        moved = plain.quality.divergence.value / one.quality.divergence.value
        told.append(
            f"{one.method}'s perplexity is {significant(abs(gap.value) * 100)} % "
            f"{'below' if gap.value < 0 else 'above'} that of rounding to nearest ("
            f"{'outside' if sure else 'within'} the noise: {_signed(gap.low)} to {_signed(gap.high)}), its "
            f"KL {significant(moved)}× smaller"
        )
    return f"At {bits} bits, on the same texts: {'; '.join(told)}."


def scan(model: Model, fmt: str, *, stories: int, seed: int = 0) -> list[Sensitivity]:
    """Which layers bear a format badly: one of them rounded at a time. The model is left as it was."""
    return quality.sensitivity_scan(fresh(model), model, Format.parse(fmt), stories=stories, seed=seed)


def scan_finding(found: Sequence[Sensitivity], fmt: str) -> str:
    """How much the harm differs between layers whose weights are all equally far off."""
    harms = sorted(found, key=lambda one: one.divergence)
    errors = [one.weight_error for one in found]
    least, worst = harms[0], harms[-1]
    return (
        f"Rounded to {fmt} one at a time, all {len(found)} layers have weights that are off by "
        f"{min(errors):.0%} to {max(errors):.0%}. What that does to the predictions differs "
        f"{significant(worst.divergence / least.divergence)} times: most from {worst.name}, least from "
        f"{least.name}."
    )


def scan_rows(found: Sequence[Sensitivity], most: int = 8) -> list[dict[str, Any]]:
    """The worst layers, exactly."""
    worst = sorted(found, key=lambda one: one.divergence, reverse=True)[:most]
    return [
        {"layer": one.name, "KL (nats a token)": one.divergence, "weight error": f"{one.weight_error:.2%}"}
        for one in worst
    ]
