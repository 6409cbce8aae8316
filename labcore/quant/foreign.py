"""Weight matrices of GPTQ and AWQ checkpoints, as their tools pack them, turned into ours without loss.

Both pack 4-bit codes (GPTQ 8-bit ones too) into int32, lowest bits first. GPTQ packs along the inputs:
qweight (columns / 8, rows); AWQ along the outputs, eight at a time in the order 0 2 4 6 1 3 5 7: qweight
(columns, rows / 8). Both pack zero points along the outputs; GPTQ's first format stores them less one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from labcore.errors import CheckpointError
from labcore.quant.formats import Format, QuantizedTensor, from_integers

# Where AWQ puts outputs 0 to 7 of eight in an int32.
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)


def from_gptq(
    qweight: Tensor,
    qzeros: Tensor,
    scales: Tensor,
    g_idx: Tensor | None,
    *,
    bits: int = 4,
    group: int = 128,
    zero_offset: int = 1,
    name: str = "a layer",
) -> tuple[QuantizedTensor, Tensor | None]:
    """(codes, order of the inputs or None). scales: (groups, rows). g_idx: the group of each input.

    zero_offset: what the stored zero points lack. group -1: one for all inputs. With g_idx in any other order
    than that of the inputs, the codes stand in the order returned.
    Raises CheckpointError for shapes that do not fit each other or the bits.
    """
    if bits not in (4, 8):
        raise CheckpointError(f"{name} has {bits}-bit GPTQ codes; labcore reads 4 and 8 bits.")
    each = 32 // bits
    rows, columns = qweight.shape[1], qweight.shape[0] * each
    groups = scales.shape[0]
    width = columns if group in (-1, 0) else group
    wanted = ((groups, rows), (groups, -(-rows // each)))
    if (tuple(scales.shape), tuple(qzeros.shape)) != wanted or groups != -(-columns // width):
        raise CheckpointError(_misfit(name, qweight, qzeros, scales, bits, group))
    q = _unpack(qweight.T.contiguous(), bits)  # (rows, columns)
    zero = _unpack(qzeros, bits)[:, :rows].T + zero_offset  # (rows, groups)
    order = None
    if g_idx is not None and not torch.equal(g_idx.long(), torch.arange(columns) // width):
        order = g_idx.long().argsort(stable=True)
        if not torch.equal(g_idx.long()[order], torch.arange(columns) // width):
            raise CheckpointError(f"{name} has groups of unequal size in g_idx; fetch the checkpoint again.")
        q = q[:, order]
    return _made(q, bits, columns, width, scales.T, zero), order


def from_awq(
    qweight: Tensor, qzeros: Tensor, scales: Tensor, *, bits: int = 4, group: int = 128, name: str = "a layer"
) -> QuantizedTensor:
    """qweight: (columns, rows / 8). qzeros: (groups, rows / 8). scales: (groups, rows).

    Raises CheckpointError for other bits than 4 and shapes that do not fit.
    """
    if bits != 4:
        raise CheckpointError(f"{name} has {bits}-bit AWQ codes; labcore reads 4 bits.")
    columns, rows = qweight.shape[0], qweight.shape[1] * 8
    width = columns if group in (-1, 0) else group
    groups = columns // width
    fits = tuple(qzeros.shape) == (groups, rows // 8) and tuple(scales.shape) == (groups, rows)
    if not fits or columns % width:
        raise CheckpointError(_misfit(name, qweight, qzeros, scales, bits, group))
    order = torch.tensor(AWQ_ORDER)
    q, zero = (
        _unpack(packed, 4).unflatten(1, (-1, 8))[..., order].flatten(1) for packed in (qweight, qzeros)
    )
    return _made(q.T, 4, columns, width, scales.T, zero.T)


def _unpack(packed: Tensor, bits: int) -> Tensor:
    """(n, m) int32 -> (n, m * 32 / bits) codes, lowest bits first."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int64)
    wide = packed.to(torch.int64) & 0xFFFFFFFF
    return ((wide[..., None] >> shifts) & (2**bits - 1)).flatten(1).to(torch.int16)


def _made(q: Tensor, bits: int, columns: int, width: int, scale: Tensor, zero: Tensor) -> QuantizedTensor:
    """The middle zero point everywhere means symmetric, which needs none."""
    granularity = {"granularity": "channel"} if width == columns else {"granularity": "group", "group": width}
    middle = 2 ** (bits - 1)
    symmetric = bool((zero == middle).all())
    fmt = Format(f"int{bits}", symmetric=symmetric, **granularity)
    scale = scale.contiguous()
    if symmetric:
        return from_integers(q - middle, fmt, scale)
    if int(zero.max()) <= 255:
        return from_integers(q, fmt, scale, zero.to(torch.uint8).contiguous())
    return from_integers(q, fmt, scale, None, -scale.float() * zero)


def _misfit(name: str, qweight: Tensor, qzeros: Tensor, scales: Tensor, bits: int, group: int) -> str:
    return (
        f"{name} has qweight {list(qweight.shape)}, qzeros {list(qzeros.shape)} and scales "
        f"{list(scales.shape)}, which do not fit {bits} bits in groups of {group}; its quantization_config "
        "belongs to other weights."
    )
