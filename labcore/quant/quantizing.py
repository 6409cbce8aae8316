"""`labcore.quantize`: every linear layer of a model becomes codes, in place; a report says what it cost."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from labcore.errors import ConfigError
from labcore.quant import choice
from labcore.quant.awq import awq
from labcore.quant.calibration import Inputs, calibration_tokens, layer_by_layer
from labcore.quant.formats import Format, quantize_tensor
from labcore.quant.gptq import gptq
from labcore.quant.linear import QuantEmbedding, QuantLinear
from labcore.quant.outliers import outlier_columns, split
from labcore.quant.recipe import Recipe
from labcore.quant.smoothquant import search_alpha, smoothing, static_scale


@dataclass(frozen=True)
class LayerReport:
    """One linear layer. Errors are relative (0: none): of the weights, and of the outputs on the calibration
    inputs (None where there were none)."""

    name: str
    rows: int
    columns: int
    format: str
    bits_per_weight: float
    bytes_before: int
    bytes_after: int
    weight_error: float
    output_error: float | None


@dataclass(frozen=True)
class Report:
    """What `quantize` did. Bytes: of all that the model stores. bits_per_weight: of the quantized layers."""

    recipe: str
    bytes_before: int
    bytes_after: int
    bits_per_weight: float
    calibration_tokens: int
    seconds: float
    layers: list[LayerReport]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


class Swap:
    """Modules put in the place of others, and how to put them back."""

    def __init__(self) -> None:
        self._before: list[tuple[nn.Module, str, nn.Module]] = []

    def put(self, root: nn.Module, path: str, new: nn.Module) -> None:
        """Replace root.path."""
        home, _, name = path.rpartition(".")
        parent = root.get_submodule(home)
        self._before.append((parent, name, getattr(parent, name)))
        setattr(parent, name, new)

    def undo(self) -> None:
        """All as it was."""
        while self._before:
            parent, name, old = self._before.pop()
            setattr(parent, name, old)


@contextmanager
def all_or_nothing() -> Iterator[Swap]:
    """A swap that is undone where anything fails, an interrupt included."""
    swap = Swap()
    try:
        yield swap
    except BaseException:
        swap.undo()
        raise


def quantize(
    model: Any,
    recipe: str | Recipe,
    *,
    calibration: Sequence[str] | Sequence[Sequence[int]] | None = None,
    progress: bool = True,
) -> Report:
    """Quantize every linear layer of a model in place, all or nothing.

    model: as `labcore.load` gives it. recipe: a Recipe, or text such as "int8" or "gptq-int4:group=64".
    calibration: texts or token ids, for methods that look at inputs; the embedded models bring their own.
    Raises ConfigError for a recipe that does not fit (then the model is as it was): groups that do not divide
    too little calibration, a model that is quantized already.
    """
    wanted = Recipe.parse(recipe) if isinstance(recipe, str) else recipe
    transformer = model.transformer
    _check(transformer, wanted)
    start, before = time.perf_counter(), model.weight_bytes
    rows = calibration_tokens(model, calibration) if wanted.needs_calibration else []
    with all_or_nothing() as swap:
        layers = (
            _calibrated(transformer, wanted, rows, swap, progress)
            if rows
            else _plain(transformer, wanted, swap)
        )
        layers += _head(transformer, model.config.tie_word_embeddings, wanted, swap)
        choice.prepare(transformer.norm.weight.device)
        transformer.prepare()
    model.recipe = wanted.label
    after = model.weight_bytes
    weights = sum(layer.rows * layer.columns for layer in layers)
    bits = 8 * sum(layer.bytes_after for layer in layers) / weights
    seconds = time.perf_counter() - start
    return Report(wanted.label, before, after, bits, sum(map(len, rows)), seconds, layers)


def _check(transformer: nn.Module, recipe: Recipe) -> None:
    """Everything that can be known before the first layer is touched."""
    if any(isinstance(module, QuantLinear) for module in transformer.modules()):
        raise ConfigError("This model is quantized already; load it anew and quantize that.")
    for linear in _linears(transformer).values():
        recipe.weights.width(linear.in_features)
    if (fmt := recipe.head_format) is not None:
        fmt.width(transformer.get_submodule("lm_head").in_features)  # type: ignore[arg-type]


def _linears(transformer: nn.Module) -> dict[str, nn.Linear]:
    return {
        name: module
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    }


def _plain(transformer: nn.Module, recipe: Recipe, swap: Swap) -> list[LayerReport]:
    found = []
    for name, linear in _linears(transformer).items():
        made = quantized_linear(linear, recipe, None)
        found.append(report_on(name, linear, made, None))
        swap.put(transformer, name, made)
    return found


def _calibrated(
    transformer: nn.Module, recipe: Recipe, rows: list[list[int]], swap: Swap, progress: bool
) -> list[LayerReport]:
    found = []
    count = len(transformer.layers)  # type: ignore[arg-type]
    with _bar(count, f"quantizing, {recipe.label}", progress) as tick:
        for number, inputs in layer_by_layer(transformer, rows, hessians=recipe.method == "gptq"):
            for name, seen in inputs.items():
                path = f"layers.{number}.{name}"
                linear = transformer.get_submodule(path)
                assert isinstance(linear, nn.Linear)
                made = quantized_linear(linear, recipe, seen)
                found.append(report_on(path, linear, made, seen.sample))
                swap.put(transformer, path, made)
            tick()
    return found


@contextmanager
def _bar(total: int, text: str, progress: bool) -> Iterator[Any]:
    """tqdm's bar where it is installed; the engine does not need it."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        yield lambda: None
        return
    with tqdm(total=total, desc=text, unit="layer", leave=False, disable=not progress) as bar:
        yield bar.update


def _head(transformer: nn.Module, tied: bool, recipe: Recipe, swap: Swap) -> list[LayerReport]:
    """The head, rounded to nearest; a tied embedding reads its rows back from the same codes."""
    if (fmt := recipe.head_format) is None:
        return []
    linear = transformer.lm_head
    assert isinstance(linear, nn.Linear)
    made = QuantLinear(quantize_tensor(linear.weight, fmt))
    report = report_on("lm_head", linear, made, None)
    swap.put(transformer, "lm_head", made)
    if tied:
        swap.put(transformer, "embed_tokens", QuantEmbedding(made, linear.weight.dtype))
    return [report]


@torch.inference_mode()
def quantized_linear(linear: nn.Linear, recipe: Recipe, seen: Inputs | None) -> QuantLinear:
    """One layer by this recipe. seen: its inputs, which the methods that calibrate need."""
    weight, bias, fmt = linear.weight.detach(), linear.bias, recipe.weights
    if seen is None:
        return QuantLinear(quantize_tensor(weight, fmt), bias, activations=recipe.activations)
    if recipe.method == "gptq" and seen.hessian is not None:
        settings: dict[str, Any] = {
            "block": recipe.block,
            "damping": recipe.damping,
            "act_order": recipe.act_order,
        }
        codes, order = gptq(weight, seen.hessian.matrix(), fmt, **settings)
        return _made(codes, linear, recipe, seen, order=order)
    if recipe.method == "awq":
        codes, smooth = awq(weight, seen.sample, fmt, clip=recipe.clip)
        return _made(codes, linear, recipe, seen, smooth=smooth)
    if recipe.method == "smoothquant":
        s = smoothing(seen.absmax, weight, _alpha(weight, recipe, seen))
        return _made(quantize_tensor(weight.float() * s, fmt), linear, recipe, seen, smooth=1 / s)
    if recipe.method == "llm_int8":
        codes, columns, apart = split(weight, outlier_columns(seen.absmax, recipe.threshold), fmt)
        if not len(columns):
            return _made(codes, linear, recipe, seen)
        return _made(codes, linear, recipe, seen, outliers=columns, outlier_weight=apart)
    return _made(quantize_tensor(weight, fmt), linear, recipe, seen)


def _alpha(weight: Tensor, recipe: Recipe, seen: Inputs) -> float:
    if recipe.alpha is not None:
        return recipe.alpha
    return search_alpha(weight, seen.sample, recipe.weights, recipe.activations or "token")[0]


def _made(codes: Any, linear: nn.Linear, recipe: Recipe, seen: Inputs, **parts: Tensor | None) -> QuantLinear:
    scale = None
    if recipe.activations == "static":
        smooth = parts.get("smooth")
        largest = seen.absmax if smooth is None else seen.absmax * smooth
        if (outliers := parts.get("outliers")) is not None:
            largest = largest.index_fill(0, outliers, 0)
        scale = static_scale(largest.amax())
    return QuantLinear(codes, linear.bias, activations=recipe.activations, activation_scale=scale, **parts)


@torch.inference_mode()
def report_on(name: str, linear: nn.Linear, made: QuantLinear, sample: Tensor | None) -> LayerReport:
    """Size and error of one layer against the one that it replaces."""
    weight = linear.weight.float()
    output = None
    if sample is not None:
        x = sample.to(linear.weight.dtype)
        output = relative_error(made.reference(x), linear(x))
    return LayerReport(
        name=name,
        rows=linear.out_features,
        columns=linear.in_features,
        format=made.format.label,
        bits_per_weight=8 * (made.nbytes - _bytes_of(made.bias)) / weight.numel(),
        bytes_before=linear.weight.nbytes,
        bytes_after=made.nbytes - _bytes_of(made.bias),
        weight_error=relative_error(made.dense(), weight),
        output_error=output,
    )


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """|found - wanted| / |wanted|, Frobenius norms."""
    return float((found.float() - wanted.float()).norm() / wanted.float().norm().clamp_min(1e-30))


def _bytes_of(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.nbytes


__all__ = ["Format", "LayerReport", "Report", "quantize"]
