"""The C functions of `quantized.c` on tensors: weights in 8- or 4-bit codes, vectors in fp32 on the CPU.

The kernel multiplies integers, so a vector is rounded to 8 bits on the way, each group of up to 192 of its
numbers by its own largest: the relative error is about 0.6 % of a dot product's size, and the same whether
tokens come one by one or together. A group whose largest number is more than CREST times its mean magnitude
takes 16 bits, in two multiplications, so that an outlier does not erase its neighbours.
"""

from __future__ import annotations

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from labcore.kernels.native.build import fp32, functions, library
from labcore.kernels.native.watched import labelled

BLOCK = 16  # rows that lie side by side
LARGEST_GROUP = 192  # numbers of a vector that are rounded with one scale
CREST = 16  # largest over mean magnitude beyond which a group takes 16 bits; 0.3 times a small group


class _Matrix(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int) for name in ("rows", "columns", "bits", "group", "x_group", "centre", "fine")),
        *(
            (name, ctypes.c_void_p)
            for name in ("codes", "scales", "offsets", "row_scale", "smooth", "order", "bias")
        ),
    ]


class Matrix:
    """A weight matrix as the kernel reads it.

    codes: of `rows` rows, as `laid_out` gives them, bits 8 or 4; they are read where they lie, not copied.
    scale, offset: (rows or 1, groups); a weight is scale * (code - centre) + offset.
    smooth (columns) multiplies the vector, order (columns) permutes it.
    x_group: numbers of a vector that share a scale and 8 bits, whatever they are: what a recipe that rounds
    activations asks for. Default: the most that divides the group, up to 192; 16 bits where 8 are too few.
    """

    def __init__(
        self,
        codes: Tensor,
        rows: int,
        bits: int,
        scale: Tensor,
        *,
        centre: int,
        offset: Tensor | None = None,
        bias: Tensor | None = None,
        smooth: Tensor | None = None,
        order: Tensor | None = None,
        x_group: int | None = None,
    ) -> None:
        columns = codes.shape[1] * 32 // bits
        self.codes, self.rows, self.columns = codes, rows, columns
        group = columns // scale.shape[1]
        largest = scale.float().abs().expand(rows, -1).amax(1).clamp_min(1e-30)
        relative = [_blocks_of(scale, largest)]
        relative += [] if offset is None else [_blocks_of(-offset, largest)]
        self._kept = [
            codes, *relative, F.pad(largest, (0, -rows % BLOCK)),
            None if smooth is None else smooth.float().contiguous(),
            None if order is None else order.to(torch.int32).contiguous(), bias,
        ]  # fmt: skip
        if offset is None:
            self._kept.insert(2, None)
        pointers = [None if tensor is None else tensor.data_ptr() for tensor in self._kept]
        size, fine = x_group or vector_group(group), x_group is None
        self._matrix = _Matrix(rows, columns, bits, group, size, centre, fine, *pointers)
        self.at = ctypes.addressof(self._matrix)

    @property
    def nbytes(self) -> int:
        """Bytes that a product reads."""
        return sum(tensor.nbytes for tensor in self._kept if tensor is not None)

    def __call__(self, x: Tensor) -> Tensor:
        """(..., columns) fp32 -> (..., rows)."""
        flat = x.reshape(-1, self.columns).contiguous()
        tokens, threads = flat.shape[0], torch.get_num_threads()
        out = fp32(tokens, self.rows)
        room = tokens * rounded_bytes(self.columns) + threads * rounding_bytes(self.columns)
        scratch = torch.empty(room, dtype=torch.uint8)
        at = (flat.data_ptr(), out.data_ptr(), scratch.data_ptr())
        with labelled("linear_native (codes)"):
            functions().labcore_quantized_linear(self.at, *at, tokens, threads)
        return out.view(*x.shape[:-1], self.rows)


    def rows_at(self, indices: Tensor) -> Tensor:
        """(n,) int64, 0 to rows - 1 -> (n, columns) fp32: those rows, as a product with them has them."""
        out = fp32(len(indices), self.columns)
        at = indices.contiguous()
        functions().labcore_quantized_rows(self.at, at.data_ptr(), out.data_ptr(), len(at))
        return out


def takes(bits: int, columns: int, group: int) -> bool:
    """Whether there is a kernel here for such a matrix."""
    return bits in (4, 8) and columns % 16 == 0 and group % 16 == 0 and library() is not None


def rounded_bytes(columns: int) -> int:
    """Bytes of one rounded vector, as `qvector_bytes` in C."""
    return -(-columns // 64) * 128 + -(-(columns // 16 * 16 + 4) // 64) * 64


def rounding_bytes(columns: int) -> int:
    """Bytes that a thread rounds a vector in, as `rounding_bytes` in C."""
    return -(-5 * columns // 64) * 64


def vector_group(group: int) -> int:
    """The most numbers, up to 192, that divide a group of weights, in multiples of 16."""
    return next(n for n in range(min(group, LARGEST_GROUP) // 16 * 16, 0, -16) if group % n == 0)


def laid_out(codes: Tensor, bits: int) -> Tensor:
    """(rows, columns) uint8, 0 to 2**bits - 1, to blocks of 16 rows, four columns of each side by side.

    Returns (blocks, columns * bits / 32, 16, 4) bytes; of 4 bits, the next four columns are the upper halves.
    Rows that fill up the last block are zeros.
    """
    rows, columns = codes.shape
    padded = F.pad(codes, (0, 0, 0, -rows % BLOCK))
    if bits == 8:
        return padded.view(-1, BLOCK, columns // 4, 4).permute(0, 2, 1, 3).contiguous()
    low, high = padded.view(-1, BLOCK, columns // 8, 2, 4).permute(3, 0, 2, 1, 4)
    return (low | high << 4).contiguous()


def unlaid(codes: Tensor, bits: int, rows: int) -> Tensor:
    """The inverse of `laid_out`: (rows, columns)."""
    lines = _words(codes).transpose(1, 2).flatten(0, 1)
    if rows < len(lines):  # a view would keep what fills up the last block
        return _codes_of(lines[:rows].clone(memory_format=torch.contiguous_format), bits)
    return _codes_of(lines.contiguous(), bits)


def rows_of(codes: Tensor, bits: int, indices: Tensor) -> Tensor:
    """Some rows of `unlaid`, (n,) -> (n, columns); only they are read."""
    return _codes_of(_words(codes)[indices // BLOCK, :, indices % BLOCK], bits)


def _words(codes: Tensor) -> Tensor:
    """(blocks, columns * bits / 32, 16): four bytes that lie side by side as one word, which moves faster."""
    return codes.view(torch.int32).squeeze(-1)


def _codes_of(lines: Tensor, bits: int) -> Tensor:
    """(n, columns * bits / 32) words -> (n, columns)."""
    parts = lines.view(torch.uint8)
    if bits == 8:
        return parts
    fours = parts.unflatten(1, (-1, 4))
    return torch.stack([fours & 15, fours >> 4], dim=2).flatten(1)


def _blocks_of(grid: Tensor, largest: Tensor) -> Tensor:
    """(rows or 1, groups) -> (blocks, groups, 16) fp16, relative to each row's largest scale."""
    relative = grid.float().expand(len(largest), -1) / largest[:, None]
    padded = F.pad(relative, (0, 0, 0, -len(largest) % BLOCK)).half()
    return padded.view(-1, BLOCK, padded.shape[1]).transpose(1, 2).contiguous()
