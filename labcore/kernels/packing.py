"""Groups of numbers as small integers with a scale and a lowest value each, several integers to a byte."""

from __future__ import annotations

import torch
from torch import Tensor

from labcore.errors import ConfigError

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0


def quantize(x: Tensor, bits: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Round each group, which is x along `dim`, to 2**bits evenly spaced values between its extremes.

    Returns codes (uint8, x's shape) and, with 1 for `dim`, scale and lowest in fp16. Both are rounded to fp16
    before the codes are chosen, so that the codes make up for it.
    """
    low, high = x.amin(dim, keepdim=True), x.amax(dim, keepdim=True)
    scale = ((high - low).float() / (2**bits - 1)).clamp(6e-5, 65504).half()  # a normal fp16 number
    lowest = low.clamp(-65504, 65504).half()
    codes = ((x - lowest.float()) / scale.float()).round().clamp(0, 2**bits - 1)
    return codes.to(torch.uint8), scale, lowest


def dequantize(codes: Tensor, scale: Tensor, lowest: Tensor, dtype: torch.dtype) -> Tensor:
    """codes * scale + lowest, in `dtype`."""
    return torch.addcmul(lowest.to(dtype), codes.to(dtype), scale.to(dtype))


def to_fp8(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """(e4m3 numbers, scale fp32 with 1 for `dim`): each group is stretched to fp8's range."""
    scale = (x.abs().amax(dim, keepdim=True).float() / FP8_MAX).clamp_min(1e-12)
    return (x / scale).clamp(-FP8_MAX, FP8_MAX).to(FP8), scale


def pack(codes: Tensor, bits: int) -> Tensor:
    """(..., n) uint8 codes below 2**bits -> (..., n * bits / 8) bytes. bits: 8, 4, 3, 2 or 1.

    Byte j holds codes j, j + n/k, j + 2n/k, … of its row, lowest bits first: parts are put side by side again
    when unpacked, which is cheaper than interleaving. Three bits are packed as two and one.
    Raises ConfigError where n codes do not fill whole bytes.
    """
    if bits == 8:
        return codes
    if bits == 3:
        return torch.cat([pack(codes & 3, 2), pack(codes >> 2, 1)], dim=-1)
    if codes.shape[-1] % (8 // bits):
        raise ConfigError(
            f"{codes.shape[-1]} codes of {bits} bits do not fill whole bytes; use a multiple of {8 // bits}, "
            "or 8 bits."
        )
    parts = codes.chunk(8 // bits, dim=-1)
    packed = parts[0].clone()
    for place, part in enumerate(parts[1:], start=1):
        packed |= part << (bits * place)
    return packed


def unpack(packed: Tensor, bits: int) -> Tensor:
    """The inverse of `pack`."""
    if bits == 8:
        return packed
    if bits == 3:
        low, high = packed.tensor_split((packed.shape[-1] * 2 // 3,), dim=-1)
        return unpack(low, 2) | unpack(high, 1) << 2
    mask = 2**bits - 1
    return torch.cat([(packed >> (bits * place)) & mask for place in range(8 // bits)], dim=-1)
