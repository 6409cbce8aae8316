"""How a number lies in memory: the bits of fp32 down to four bits, and all the values a format has.

Bits are read from the tensors that torch and labcore store, by viewing their bytes as integers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from labcore.errors import LessonError
from labcore.kernels.packing import pack, unpack
from labcore.lab.units import significant
from labcore.quant.formats import FP8, Format, QuantizedTensor, encode, grid

# The bits' kinds, sign first: (number of exponent bits, of mantissa bits).
FLOATS = {
    "fp32": (torch.float32, 8, 23),
    "fp16": (torch.float16, 5, 10),
    "bf16": (torch.bfloat16, 8, 7),
    "fp8_e4m3": (FP8["fp8_e4m3"], 4, 3),
    "fp8_e5m2": (FP8["fp8_e5m2"], 5, 2),
}
CODED = ("int8", "int4", "nf4")
VIEWS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
INTERESTING = (
    1e-8, 6.1e-5, 0.003, 0.02, 0.1, 1 / 3, 1.0, -2.7, math.pi, 60.0, 448.0, 449.0, 500.0, 65504.0, 1e5,
)  # fmt: skip
LARGEST = (0.5, 1.0, 4.0, 60.0, 500.0, 1e5)
LEVEL_FORMATS = ("int8", "fp8_e4m3", "fp8_e5m2", "int4", "nf4")
CLOSE = 0.01
HOLDS, OFF, OVERFLOWS, FLUSHES = "within 1 %", "off by more", "too large for it", "flushed to zero"


@dataclass(frozen=True)
class Pattern:
    """A number in one format. parts: kind of bits (sign, exponent, mantissa or code) and the bits as text.

    top: the largest magnitude the format holds, at this scale.
    """

    format: str
    value: float
    stands_for: float
    parts: tuple[tuple[str, str], ...]
    top: float

    @property
    def bits(self) -> str:
        """The parts, a space between."""
        return " ".join(bits for _, bits in self.parts)

    @property
    def relative_error(self) -> float | None:
        """|held - value| / |value|; None for what is no number, or for zero."""
        if not math.isfinite(self.stands_for) or self.value == 0:
            return None
        return abs(self.stands_for - self.value) / abs(self.value)

    @property
    def verdict(self) -> str:
        """Whether it is held within 1 %, and if not, why."""
        error = self.relative_error
        if self.value == self.stands_for or (error is not None and error <= CLOSE):
            return HOLDS
        if error is None or abs(self.value) > self.top:
            return OVERFLOWS
        return FLUSHES if self.stands_for == 0 else OFF

    @property
    def off_by(self) -> str:
        """The relative error in percent, as text."""
        error = self.relative_error
        if self.value == self.stands_for:
            return "exact"
        return "–" if error is None else f"{100 * error:.2g} %"


def bit_patterns(value: float, largest: float = 1.0) -> tuple[Pattern, ...]:
    """A number in eight formats.

    Floats hold it as it is; fp8 saturates at its largest value, as `quant.formats` has it. int8, int4 and nf4
    hold it on the grid of a row whose largest magnitude is `largest`. Raises LessonError for a value that is
    not finite and for a `largest` that is not above 0.
    """
    if not math.isfinite(value):
        raise LessonError(f"The bits of {value} are no lesson; take a finite number.")
    if not (0 < largest < math.inf):
        raise LessonError(f"The largest number of a row is {largest:g} here; it must lie above 0.")
    return (*(_float(value, name) for name in FLOATS), *(_coded(value, name, largest) for name in CODED))


def _float(value: float, name: str) -> Pattern:
    dtype, exponent, mantissa = FLOATS[name]
    top = torch.finfo(dtype).max
    held = torch.tensor([value], dtype=torch.float64)
    held = held.clamp(-top, top) if dtype in FP8.values() else held
    stored = held.float().to(dtype)
    text = _binary(stored, 1 + exponent + mantissa)
    parts = (("sign", text[0]), ("exponent", text[1 : 1 + exponent]), ("mantissa", text[1 + exponent :]))
    return Pattern(name, value, float(stored.double()), parts, top)


def _coded(value: float, name: str, largest: float) -> Pattern:
    fmt = Format(name)
    scale, _ = grid(torch.tensor([[largest]]), fmt)
    held = encode(torch.full((1, 8), value), fmt, scale)
    code = unpack(held.codes, fmt.bits)[0, :1]
    return Pattern(name, value, float(held.dequantize()[0, 0]), (("code", _binary(code, fmt.bits)),), largest)


def _binary(stored: Tensor, bits: int) -> str:
    """The bits of a single stored element, highest first."""
    whole = stored.view(VIEWS[stored.element_size()])
    return f"{int(whole) & (2**bits - 1):0{bits}b}"


def bit_rows_of(value: float, largest: float = 1.0) -> list[dict[str, Any]]:
    """The patterns of a number as plain rows. (int8 and int4 are stored with 128 and 8 added.)"""
    return [
        {
            "format": one.format,
            "bits": one.bits,
            "stands for": f"{one.stands_for:.7g}",
            "off by": one.off_by,
            "": one.verdict,
        }
        for one in bit_patterns(value, largest)
    ]


def bit_finding(patterns: Sequence[Pattern], largest: float) -> str:
    """Which formats hold a number within 1 %, and what becomes of it in the others."""
    said = []
    for verdict in (HOLDS, OFF, OVERFLOWS, FLUSHES):
        names = [
            one.format + ("" if verdict in (HOLDS, FLUSHES) else f" ({one.stands_for:.4g})")
            for one in patterns
            if one.verdict == verdict
        ]
        if names:
            said.append(f"{verdict}: {', '.join(names)}")
    return (
        f"{patterns[0].value:.6g} is held {'; '.join(said)}. (int8, int4 and nf4: in a row whose largest "
        f"number is {significant(largest)}.)"
    )


# All the values of a format


@lru_cache
def values_of(fmt: Format) -> Tensor:
    """(n,) ascending: the different values that the codes stand for before the scale.

    Found by reading every code and keeping what rounding gives back unchanged: so neither what is no number
    nor the integer below -largest, which absmax grids leave unused, is among them.
    """
    every = _every_code(replace(fmt, granularity="tensor", group=0))
    values = every.values()
    zero = None if fmt.symmetric else torch.zeros(1, 1, dtype=torch.uint8)
    again = encode(values, every.format, every.scale, zero).values()
    kept: Tensor = values[again == values].unique()
    return kept


def _every_code(fmt: Format) -> QuantizedTensor:
    """(1, 2**bits) with a scale of 1."""
    codes = torch.arange(2**fmt.bits, dtype=torch.uint8)[None]
    packed = codes.view(FP8[fmt.dtype]) if fmt.dtype in FP8 else pack(codes, fmt.bits)
    zero = None if fmt.symmetric else torch.zeros(1, 1, dtype=torch.uint8)
    return QuantizedTensor((1, codes.shape[1]), fmt, packed, torch.ones(1, 1), zero)


def levels_of(dtype: str) -> Tensor:
    """(n,) ascending: a format's different values, the largest made 1."""
    values = values_of(Format(dtype))
    return values / values.max()


def level_rows(formats: Sequence[str] = LEVEL_FORMATS) -> list[dict[str, Any]]:
    """How many values each format has and where they lie, the largest made 1."""
    rows: list[dict[str, Any]] = []
    for name in formats:
        levels, values = levels_of(name), values_of(Format(name))
        rows.append(
            {
                "format": name,
                "codes": 2 ** Format(name).bits,
                "finite": int(_every_code(Format(name, "tensor")).values().isfinite().sum()),
                "different values": len(levels),
                "largest": f"{float(values.max()):g}",
                "largest / smallest": f"{float(1 / levels[levels > 0].min()):,.0f}",
                "within a tenth of the largest": f"{float((levels.abs() < 0.1).float().mean()):.0%}",
            }
        )
    return rows


def level_finding(formats: Sequence[str] = LEVEL_FORMATS) -> str:
    """Where the formats are dense."""
    near = {name: float((levels_of(name).abs() < 0.1).float().mean()) for name in formats}
    said = ", ".join(f"{name} {share:.0%}" for name, share in near.items())
    return f"Of the values of each format, so many lie within a tenth of its largest around zero: {said}."
