"""How the numbers of a weight matrix are held in few bits: the grid, the codes on it, and the way back.

A matrix is (rows, columns): outputs by inputs. A grid has one scale for the whole of it ("tensor"), for each
row ("channel"), or for each row and so many columns ("group"). Integers stand for `scale * (q - zero)`; nf4
and fp8 for `scale * value`, where the values are the sixteen of QLoRA's table or fp8's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from labcore.errors import ConfigError
from labcore.kernels.packing import pack, unpack

Granularity = Literal["tensor", "channel", "group"]

INTEGERS = {"int8": 8, "int4": 4, "int3": 3, "int2": 2}
FP8 = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
DTYPES = (*INTEGERS, "nf4", *FP8)
SCALE_BITS, ZERO_BITS = 16, 8
DEFAULT_GROUP = 64
TINY = 6.2e-5  # a normal fp16 number: below it scales lose their own precision

# NormalFloat: quantiles of N(0, 1) scaled to [-1, 1], zero among them (Dettmers et al. 2023, QLoRA).
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023,
    1.0,
)  # fmt: skip


@dataclass(frozen=True)
class Format:
    """How a weight matrix is held.

    dtype: int8, int4, int3, int2, nf4, fp8_e4m3 or fp8_e5m2. granularity: what shares a scale. group: columns
    that do, for "group". symmetric: False adds a zero point of 8 bits to each scale (integers only).
    Raises ConfigError for what does not exist or does not go together.
    """

    dtype: str = "int8"
    granularity: Granularity = "channel"
    group: int = 0
    symmetric: bool = True

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(f"There is no format {self.dtype!r}; choose from {', '.join(DTYPES)}.")
        if self.granularity not in ("tensor", "channel", "group"):
            raise ConfigError(f"granularity is {self.granularity!r}; choose tensor, channel or group.")
        if (self.granularity == "group") != (self.group > 0):
            raise ConfigError(
                f"granularity {self.granularity!r} with group={self.group} means nothing; state a group of 1 "
                "or more columns with granularity='group', and 0 with the others."
            )
        if not self.symmetric and not self.is_integer:
            raise ConfigError(f"{self.dtype} has no zero point; leave symmetric=True, or use an integer.")

    @classmethod
    def parse(cls, text: str) -> Format:
        """From "int4", "int4:group=128,symmetric=false", "fp8_e4m3:granularity=tensor"."""
        name, _, rest = text.strip().partition(":")
        settings: dict[str, Any] = {}
        for part in filter(None, rest.split(",")):
            key, _, value = part.partition("=")
            settings[key.strip()] = value.strip()
        return cls.of(name, settings)

    @classmethod
    def of(cls, name: str, settings: dict[str, Any]) -> Format:
        """A dtype with settings that may be text. Takes the settings that it knows out of the dict.

        Without a granularity: a scale a row for 8 bits, groups of 64 for fewer.
        """
        known: dict[str, Any] = {
            key: settings.pop(key) for key in ("granularity", "group", "symmetric") if key in settings
        }
        if settings:
            raise ConfigError(
                f"{name} has no setting {', '.join(map(repr, settings))}; it has granularity, group and "
                "symmetric."
            )
        try:
            group = int(known.get("group", 0))
        except ValueError:
            raise ConfigError(f"group is {known['group']!r}; state a number of columns.") from None
        coarse = name == "int8" or name in FP8
        granularity: Any = known.get("granularity") or ("channel" if coarse and not group else "group")
        if granularity == "group" and not group:
            group = DEFAULT_GROUP
        symmetric = str(known.get("symmetric", True)).lower() not in ("false", "0", "no")
        return cls(name, granularity, group, symmetric)

    @property
    def is_integer(self) -> bool:
        """Whether the codes are integers."""
        return self.dtype in INTEGERS

    @property
    def bits(self) -> int:
        """Bits of one code."""
        return INTEGERS.get(self.dtype, 4 if self.dtype == "nf4" else 8)

    @property
    def label(self) -> str:
        """Such as "int4:group=128", which `parse` reads."""
        scope = f"group={self.group}" if self.group else f"granularity={self.granularity}"
        return f"{self.dtype}:{scope}" + ("" if self.symmetric else ",symmetric=false")

    def width(self, columns: int) -> int:
        """Columns that share a scale. Raises ConfigError where groups do not divide the columns."""
        if self.granularity != "group":
            return columns
        if columns % self.group:
            near = [n for n in (16, 32, 64, 96, 128, 192, 256) if n <= columns and columns % n == 0]
            could = f"such as {', '.join(map(str, near))}" if near else "or granularity='channel'"
            raise ConfigError(
                f"Groups of {self.group} do not divide the {columns} columns of a weight matrix; take a "
                f"divisor, {could}."
            )
        return self.group

    def grid_shape(self, rows: int, columns: int) -> tuple[int, int]:
        """(rows, groups) of the scales."""
        return (1 if self.granularity == "tensor" else rows, columns // self.width(columns))

    def effective_bits(self, shape: tuple[int, int]) -> float:
        """Bits a weight takes: code + (scale + zero point) / weights that share them. (fp16; fp8's fp32.)"""
        rows, columns = shape
        lines, groups = self.grid_shape(rows, columns)
        scale = 2 * SCALE_BITS if self.dtype in FP8 else SCALE_BITS
        extra = scale + (0 if self.symmetric else ZERO_BITS)
        return self.bits + extra * lines * groups / (rows * columns)


@dataclass
class QuantizedTensor:
    """A weight matrix in a format.

    codes: packed uint8 (rows, columns * bits / 8), or fp8 (rows, columns). scale: (rows or 1, groups).
    zero: integer zero points of that shape, None where symmetric. offset: added after scaling, where a
    foreign format states a lowest value rather than a zero point. Symmetric integers are packed with
    2**(bits - 1) added.
    """

    shape: tuple[int, int]
    format: Format
    codes: Tensor
    scale: Tensor
    zero: Tensor | None = None
    offset: Tensor | None = field(default=None)

    def integers(self) -> Tensor:
        """(rows, columns) int16: signed where symmetric, else 0 to 2**bits - 1; integer formats and nf4."""
        q = unpack(self.codes, self.format.bits).to(torch.int16)
        signed = self.format.is_integer and self.format.symmetric and self.offset is None
        return q - 2 ** (self.format.bits - 1) if signed else q

    def values(self) -> Tensor:
        """(rows, columns) fp32: the codes' own values, before the scale."""
        if self.format.dtype in FP8:
            return self.codes.float()
        q = self.integers()
        return q.float() if self.format.is_integer else _nf4(q.device)[q.long()]

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """(rows, columns): the weights that the codes stand for."""
        return apply_grid(self.values(), self.scale, self.zero, self.offset).to(dtype)

    def rows(self, indices: Tensor, dtype: torch.dtype) -> Tensor:
        """(..., columns): some rows only, dequantized; what an embedding looks up."""
        flat = indices.reshape(-1)
        picked: dict[str, Any] = {name: _pick(tensor, flat) for name, tensor in self.tensors().items()}
        some = replace(self, shape=(len(flat), self.shape[1]), **picked)
        return some.dequantize(dtype).view(*indices.shape, self.shape[1])

    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by field."""
        named = {"codes": self.codes, "scale": self.scale, "zero": self.zero, "offset": self.offset}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    @property
    def effective_bits(self) -> float:
        """Bits that a weight really takes here."""
        return 8 * self.nbytes / (self.shape[0] * self.shape[1])

    def to(self, device: torch.device) -> QuantizedTensor:
        """The same on another device."""
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return replace(self, **moved)


def apply_grid(q: Tensor, scale: Tensor, zero: Tensor | None = None, offset: Tensor | None = None) -> Tensor:
    """scale * (q - zero) + offset. q: (rows, columns) fp32; the others: (rows or 1, groups)."""
    groups = scale.shape[1]
    grouped = q.unflatten(1, (groups, -1))  # (rows, groups, columns that share a scale)
    if zero is not None:
        grouped = grouped - zero.float()[..., None]
    grouped = grouped * scale.float()[..., None]
    if offset is not None:
        grouped = grouped + offset.float()[..., None]
    return grouped.flatten(1)


def grid(weight: Tensor, fmt: Format) -> tuple[Tensor, Tensor | None]:
    """(scale fp16, zero uint8 or None) that the weights' extremes ask for, each (rows or 1, groups).

    Symmetric: the largest magnitude lies on the last code. With a zero point: lowest and highest lie on the
    first and the last, and zero itself is a code, so that what is nothing stays nothing.
    """
    grouped = _grouped(weight.float(), fmt)
    dims = (0, 2) if fmt.granularity == "tensor" else (2,)
    if fmt.symmetric:
        largest = grouped.abs().amax(dims, keepdim=True).reshape(fmt.grid_shape(*weight.shape))
        return _scale(largest / _top(fmt), fmt), None
    low = grouped.amin(dims, keepdim=True).clamp(max=0).reshape(fmt.grid_shape(*weight.shape))
    high = grouped.amax(dims, keepdim=True).clamp(min=0).reshape(low.shape)
    scale = _scale((high - low) / (2**fmt.bits - 1), fmt)
    zero = (-low / scale.float()).round().clamp(0, 2**fmt.bits - 1)
    return scale, zero.to(torch.uint8)


def encode(weight: Tensor, fmt: Format, scale: Tensor, zero: Tensor | None = None) -> QuantizedTensor:
    """The nearest codes on a given grid."""
    grouped = _grouped(weight.float(), fmt) / scale.float()[..., None]
    if fmt.dtype in FP8:
        top = torch.finfo(FP8[fmt.dtype]).max
        codes = grouped.clamp(-top, top).flatten(1).to(FP8[fmt.dtype])
        return QuantizedTensor(_shape(weight), fmt, codes, scale)
    if fmt.dtype == "nf4":
        return from_integers(_nearest_nf4(grouped.flatten(1)), fmt, scale)
    if zero is not None:
        q = (grouped.round() + zero.float()[..., None]).clamp(0, 2**fmt.bits - 1)
    else:
        q = grouped.round().clamp(-_top(fmt), _top(fmt))
    return from_integers(q.flatten(1), fmt, scale, zero)


def quantize_tensor(weight: Tensor, fmt: Format) -> QuantizedTensor:
    """Round to nearest. weight: (rows, columns). Raises ConfigError where groups do not divide."""
    return encode(weight, fmt, *grid(weight, fmt))


def from_integers(
    q: Tensor, fmt: Format, scale: Tensor, zero: Tensor | None = None, offset: Tensor | None = None
) -> QuantizedTensor:
    """Codes that are known. q: (rows, columns), signed where symmetric without an offset, else from 0 up."""
    signed = fmt.is_integer and fmt.symmetric and offset is None
    unsigned = q + 2 ** (fmt.bits - 1) if signed else q
    return QuantizedTensor(
        _shape(q), fmt, pack(unsigned.to(torch.uint8), fmt.bits).contiguous(), scale, zero, offset
    )


def fake(weight: Tensor, fmt: Format) -> Tensor:
    """The weights after a round trip, in their own dtype: what the rounding alone does."""
    return quantize_tensor(weight, fmt).dequantize(weight.dtype)


def _shape(weight: Tensor) -> tuple[int, int]:
    rows, columns = weight.shape
    return rows, columns


def _grouped(weight: Tensor, fmt: Format) -> Tensor:
    return weight.unflatten(1, (-1, fmt.width(weight.shape[1])))


def _top(fmt: Format) -> float:
    """The largest value that a symmetric code stands for."""
    if fmt.dtype in FP8:
        return float(torch.finfo(FP8[fmt.dtype]).max)
    return 1.0 if fmt.dtype == "nf4" else float(2 ** (fmt.bits - 1) - 1)


def _scale(exact: Tensor, fmt: Format) -> Tensor:
    """As fp16, rounded before the codes are chosen, so that the codes make up for it; fp32 for fp8, whose
    scales are small (a weight of 0.02 over 448), and for weights so small that fp16 would lose digits."""
    small = fmt.dtype in FP8 or bool(((exact < TINY) & (exact > 0)).any())
    if small or bool((exact > 65504).any()):
        return exact.float().clamp_min(1e-30)
    return exact.clamp_min(TINY).half()


def _nearest_nf4(x: Tensor) -> Tensor:
    table = _nf4(x.device)
    return torch.bucketize(x, (table[1:] + table[:-1]) / 2)


def _nf4(device: torch.device) -> Tensor:
    return torch.tensor(NF4, device=device, dtype=torch.float32)


def _pick(tensor: Tensor, indices: Tensor) -> Tensor:
    """Rows of a stored tensor; what all rows share stays as it is. (fp8 cannot be indexed: by its bytes.)"""
    if tensor.shape[0] == 1:
        return tensor
    if tensor.dtype in FP8.values():
        return tensor.view(torch.uint8)[indices].view(tensor.dtype)
    return tensor[indices]
