"""Lesson 7's microscope: a weight matrix, the grid that a format lays over it, and what rounding costs.

All of it is done by the functions that the engine quantizes with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from labcore.errors import ConfigError, LessonError
from labcore.kernels.packing import unpack
from labcore.lab.bit_patterns import values_of
from labcore.lab.units import si, significant
from labcore.model import Model
from labcore.quant.formats import (
    FP8,
    Format,
    Granularity,
    QuantizedTensor,
    apply_grid,
    encode,
    quantize_tensor,
)
from labcore.quant.linear import QuantLinear

GROUP = 64
SCOPES: dict[Granularity, str] = {
    "tensor": "one scale in all",
    "channel": "a scale for each row",
    "group": f"a scale for every {GROUP} numbers",
}
OUTLIERS = {"none": 1.0, "0.1 % of the numbers × 10": 10.0, "0.1 % of the numbers × 50": 50.0}
OUTLIER_SHARE = 1e-3
NORMAL = "normal numbers, 1024²"
LOOKED_AT = 1 << 20  # numbers of a matrix that are looked at: whole rows of it, at most so many


@dataclass(frozen=True)
class Lane:
    """What shares one scale: a matrix, a row, or a group of a row's columns.

    why: what it stands for among the others, "" where it is the only one. place: where it lies.
    weights and back (n,): its numbers, before and after.
    """

    why: str
    place: str
    format: Format
    scale: Tensor
    zero: Tensor | None
    weights: Tensor
    back: Tensor

    @cached_property
    def levels(self) -> Tensor:
        """(n,) ascending: every number that this grid can hold."""
        return apply_grid(values_of(self.format)[None], self.scale, self.zero)[0]

    def error_at(self, x: Tensor) -> Tensor:
        """(n,) -> (n,): what rounding to this grid adds to x."""
        fmt = replace(self.format, granularity="tensor", group=0)
        whole = torch.cat([x, x.new_zeros(-len(x) % 8)])  # packed codes fill whole bytes
        back = encode(whole[None], fmt, self.scale, self.zero).dequantize()[0]
        return (back - whole)[: len(x)]


@dataclass(frozen=True)
class Look:
    """A matrix before and after a round trip through a format. weight, back: (rows, columns) fp32."""

    name: str
    weight: Tensor
    held: QuantizedTensor

    @property
    def format(self) -> Format:
        """How it is held."""
        return self.held.format

    @property
    def title(self) -> str:
        """Such as "layers.0.mlp.down_proj as int4, a scale for each row"."""
        zero = "" if self.format.symmetric else ", with a zero point"
        return f"{self.name} as {self.format.dtype}, {SCOPES[self.format.granularity]}{zero}"

    @cached_property
    def back(self) -> Tensor:
        """What the codes stand for."""
        return self.held.dequantize()

    @cached_property
    def mse(self) -> float:
        """Mean squared error."""
        return float((self.weight - self.back).square().mean())

    @cached_property
    def sqnr_db(self) -> float:
        """Decibels of signal over error: 10·log10(Σw² / Σ(w - ŵ)²); infinite where nothing is lost."""
        return decibels(float(self.weight.square().mean()), self.mse)

    @property
    def relative_error(self) -> float:
        """‖w - ŵ‖ / ‖w‖."""
        return 10 ** (-self.sqnr_db / 20)

    @property
    def expected_mse(self) -> float | None:
        """Δ²/12 over the grids: errors spread evenly over a step. None where steps differ (nf4, fp8)."""
        return float(self.held.scale.float().square().mean()) / 12 if self.format.is_integer else None

    @cached_property
    def code_counts(self) -> Tensor:
        """(2**bits,) numbers that each code holds, in the whole matrix."""
        codes = self.held.codes
        plain = codes.view(torch.uint8) if self.format.dtype in FP8 else unpack(codes, self.format.bits)
        return torch.bincount(plain.flatten(), minlength=2**self.format.bits)

    @property
    def codes_used(self) -> int:
        """Codes that hold any number at all."""
        return int((self.code_counts > 0).sum())

    @property
    def codes_for_most(self) -> int:
        """The fewest codes that together hold 99 % of the numbers."""
        most = self.code_counts.sort(descending=True).values.cumsum(0)
        return int((most < 0.99 * self.weight.numel()).sum()) + 1

    def lanes(self) -> list[Lane]:
        """The grid of the largest weight; with a scale a row or group, the middle and the finest too."""
        columns = self.weight.shape[1]
        groups = self.held.scale.shape[1]
        row, column = divmod(int(self.weight.abs().argmax()), columns)
        if self.format.granularity == "tensor":
            return [self._lane("", 0, 0)]
        order = self.held.scale.flatten().float().argsort(stable=True).tolist()
        lines = {
            "largest weight": row * groups + column * groups // columns,
            "middle scale": order[len(order) // 2],
            "smallest scale": order[0],
        }
        return [self._lane(why, *divmod(line, groups)) for why, line in lines.items()]

    def _lane(self, why: str, row: int, group: int) -> Lane:
        width = self.format.width(self.weight.shape[1])
        first, last = group * width, (group + 1) * width
        if self.format.granularity == "tensor":
            rows, place = slice(None), "the whole matrix"
        else:
            rows, place = slice(row, row + 1), f"row {row:,}"
        if self.format.granularity == "group":
            place += f", columns {first:,}–{last - 1:,}"
        scale = self.held.scale[row, group].view(1, 1)
        zero = None if self.held.zero is None else self.held.zero[row, group].view(1, 1)
        weights, back = (whole[rows, first:last].flatten() for whole in (self.weight, self.back))
        return Lane(why, place, self.format, scale, zero, weights, back)

    def finding(self) -> str:
        """Error, size and the use that is made of the codes."""
        full = 4 * self.weight.numel()
        rows, columns = self.weight.shape
        return (
            f"{self.title} ({rows:,} × {columns:,}): SQNR {self.sqnr_db:.1f} dB, that is an error of "
            f"{significant(100 * self.relative_error)} % of the weights. "
            f"{self.held.effective_bits:.3f} effective bits: {si(self.held.nbytes, 'B')} where fp32 takes "
            f"{si(full, 'B')}, {significant(full / self.held.nbytes)}× less. {self.codes_used} of "
            f"{2**self.format.bits} codes are used at all; {self.codes_for_most} hold 99 % of the numbers."
        )


def decibels(signal: float, error: float) -> float:
    """10·log10(signal / error) of two mean squares; infinite where there is no error."""
    if error == 0 or signal == 0:
        return math.inf if error == 0 else -math.inf
    return 10 * math.log10(signal / error)


def look_at(weight: Tensor, fmt: Format, name: str = "the matrix") -> Look:
    """Round a matrix (rows, columns) to a format. Raises ConfigError where groups do not divide it."""
    return Look(name, weight, quantize_tensor(weight, fmt))


def format_of(dtype: str, scope: Granularity, *, zero: bool = False) -> Format:
    """scope "group": of 64 columns. Raises ConfigError for a zero point without integers."""
    return Format(dtype, scope, GROUP if scope == "group" else 0, symmetric=not zero)


def scope_rows(look: Look) -> list[dict[str, Any]]:
    """The same format with all three granularities; nothing stands where the groups do not divide."""
    rows = []
    for scope, words in SCOPES.items():
        row: dict[str, Any] = {"granularity": words, "SQNR (dB)": None}
        rows.append(row)
        fmt = format_of(look.format.dtype, scope, zero=not look.format.symmetric)
        try:
            seen = look if fmt == look.format else look_at(look.weight, fmt)
        except ConfigError:
            continue
        expected = seen.expected_mse
        row["SQNR (dB)"] = round(seen.sqnr_db, 2)
        row["effective bits"] = f"{seen.held.effective_bits:.3f}"
        row["MSE (millionths)"] = 1e6 * seen.mse
        row["Δ²/12 (millionths)"] = None if expected is None else 1e6 * expected
        row["codes used"] = seen.codes_used
        row["codes for 99 %"] = seen.codes_for_most
    return rows


# The matrices


def matrix_names(model: Model) -> list[str]:
    """The linear layers of a model, in its order, and normal numbers."""
    return [*_linears(model), NORMAL]


def matrix_of(model: Model, name: str, *, factor: float = 1.0, seed: int = 0) -> Tensor:
    """(rows, columns) fp32 on the CPU: a layer's weights, or normal numbers; of large ones the first rows.

    factor: what 0.1 % of the numbers, chosen by the seed, are multiplied by. Raises LessonError for a name
    that the model does not have.
    """
    if name == NORMAL:
        weight = _normal(1024, seed)
    else:
        layers = _linears(model)
        if name not in layers:
            raise LessonError(f"{model.name!r} has no matrix {name!r}; it has {', '.join(layers)}.")
        layer = layers[name]
        whole = layer.dense() if isinstance(layer, QuantLinear) else layer.weight.detach()
        weight = whole[: max(1, LOOKED_AT // whole.shape[1])].float().cpu()
    return weight if factor == 1 else planted(weight, factor, seed)


def described(model: Model, name: str, weight: Tensor, outliers: str = "none") -> str:
    """A matrix's name, with what was cut off it and what was planted in it."""
    layer = _linears(model).get(name)
    whole = weight.shape[0] if layer is None else layer.out_features
    cut = "" if whole == weight.shape[0] else f", first {weight.shape[0]:,} of {whole:,} rows"
    return name + cut + ("" if outliers == "none" else f", {outliers},")


def planted(weight: Tensor, factor: float, seed: int = 0) -> Tensor:
    """A copy in which 0.1 % of the numbers (at least one), chosen by the seed, are `factor` times larger."""
    made = weight.clone().flatten()
    count = max(1, round(OUTLIER_SHARE * made.numel()))
    picked = torch.randperm(made.numel(), generator=torch.Generator().manual_seed(seed))[:count]
    made[picked] *= factor
    return made.view_as(weight)


def _linears(model: Model) -> dict[str, nn.Linear | QuantLinear]:
    modules = model.transformer.named_modules()
    return {name: module for name, module in modules if isinstance(module, (nn.Linear, QuantLinear))}


@lru_cache(maxsize=2)
def _normal(side: int, seed: int) -> Tensor:
    return torch.randn(side, side, generator=torch.Generator().manual_seed(seed))
