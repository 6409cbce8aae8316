"""llama.cpp's quantized blocks turned into ours: the same numbers, in our layout.

Layouts as in ggml's `block_q4_0`, `block_q8_0`, `block_q4_K` and `block_q6_K`. The K kinds keep 6- and 8-bit
scales of scales; here each group has its product in fp32, so they take more memory than in the file.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from labcore.quant.formats import Format, QuantizedTensor, from_integers

# kind -> (weights, bytes) of a block
BLOCKS = {"Q4_0": (32, 18), "Q8_0": (32, 34), "Q4_K": (256, 144), "Q6_K": (256, 210)}


def from_blocks(kind: str, raw: Tensor) -> QuantizedTensor:
    """raw: (rows, bytes) uint8 of one of BLOCKS -> codes (rows, columns)."""
    weights, size = BLOCKS[kind]
    blocks = raw.unflatten(1, (-1, size))  # (rows, blocks, bytes)
    return _READERS[kind](blocks, raw.shape[0])


def _half(part: Tensor) -> Tensor:
    """(..., 2) bytes -> (...,) fp16."""
    return part.contiguous().view(torch.float16)[..., 0]


def _q4_0(blocks: Tensor, rows: int) -> QuantizedTensor:
    """fp16 scale, 16 bytes: weight j in the low half of byte j, weight j + 16 in the high half; less 8."""
    packed = blocks[..., 2:]
    q = torch.cat([packed & 15, packed >> 4], dim=-1).to(torch.int16) - 8
    return from_integers(q.reshape(rows, -1), Format("int4", "group", 32), _half(blocks[..., :2]))


def _q8_0(blocks: Tensor, rows: int) -> QuantizedTensor:
    """fp16 scale, 32 signed bytes."""
    q = blocks[..., 2:].contiguous().view(torch.int8).to(torch.int16)
    return from_integers(q.reshape(rows, -1), Format("int8", "group", 32), _half(blocks[..., :2]))


def _q4_k(blocks: Tensor, rows: int) -> QuantizedTensor:
    """Eight groups of 32: w = d * scale * q - dmin * min, scale and min in 6 bits of 12 bytes."""
    d, dmin = _half(blocks[..., :2]).float(), _half(blocks[..., 2:4]).float()
    bits = blocks[..., 4:16]
    first, second, third = bits[..., :4], bits[..., 4:8], bits[..., 8:]
    scale = torch.cat([first & 63, (third & 15) | ((first >> 6) << 4)], dim=-1)
    lowest = torch.cat([second & 63, (third >> 4) | ((second >> 6) << 4)], dim=-1)
    packed = blocks[..., 16:].unflatten(-1, (4, 32))  # each 32 bytes: one group low, the next one high
    q = torch.stack([packed & 15, packed >> 4], dim=-2).reshape(rows, -1)
    scales = (d[..., None] * scale.float()).reshape(rows, -1)
    offsets = -(dmin[..., None] * lowest.float()).reshape(rows, -1)
    return from_integers(q.to(torch.int16), Format("int4", "group", 32), scales, None, offsets)


def _q6_k(blocks: Tensor, rows: int) -> QuantizedTensor:
    """Sixteen groups of 16: w = d * scale * (q - 32), q in 4 low bits (128 bytes) and 2 high ones (64)."""
    low = blocks[..., :128].unflatten(-1, (2, 2, 32))  # (halves of 128 weights, 32 apart, 32)
    high = blocks[..., 128:192].unflatten(-1, (2, 1, 32))
    nibbles = torch.cat([low & 15, low >> 4], dim=-2)  # (2, 4, 32)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]
    q = (nibbles | ((high >> shifts) & 3) << 4).to(torch.int16) - 32
    scale = blocks[..., 192:208].contiguous().view(torch.int8).float()
    d = _half(blocks[..., 208:]).float()
    scales = (d[..., None] * scale).reshape(rows, -1)
    return from_integers(q.reshape(rows, -1), Format("int8", "group", 16), scales)


_READERS: dict[str, Callable[[Tensor, int], QuantizedTensor]] = {
    "Q4_0": _q4_0,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q6_K": _q6_k,
}
