"""Weight matrices of GPTQ and AWQ checkpoints, as their tools pack them, turned into ours without loss.

Both pack 4-bit codes (GPTQ 8-bit ones too) into int32, lowest bits first. GPTQ packs along the inputs:
qweight (columns / 8, rows); AWQ along the outputs, eight at a time in the order 0 2 4 6 1 3 5 7: qweight
(columns, rows / 8). Both pack zero points along the outputs.

GPTQ's first format stores zero points less one, and the subtraction is one of int32 words, not of codes: a
zero point of 0 borrows from the code above it. Eight 4-bit zero points [0, 8, 8, 8, 8, 8, 8, 8] are the word
0x88888880; less 0x11111111 it is 0x7777776F, whose codes read [15, 6, 7, 7, 7, 7, 7, 7]. One added to each
code would give [16, 7, 8, ...]; 0x11111111 added to the word gives the zero points back (GPTQModel's
convert_gptq_v1_to_v2_format does the same). The borrow of the highest code leaves the word and comes back.
AutoGPTQ subtracted before it packed: the same word where no zero point is 0. Where one is, its -1 has filled
all bits above it, and what stood there is lost; such words are refused.
"""

from __future__ import annotations

import torch
from torch import Tensor

from labcore.errors import CheckpointError
from labcore.kernels.packing import pack
from labcore.quant.formats import Format, QuantizedTensor

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
    symmetric: bool = False,
    name: str = "a layer",
) -> tuple[QuantizedTensor, Tensor | None]:
    """(codes, order of the inputs or None). scales: (groups, rows). g_idx: the group of each input.

    zero_offset: what the stored zero points lack, 1 in the first format, 0 in the second. group -1: one for
    all inputs. symmetric: the configuration says so, which means the middle zero point everywhere. With g_idx
    in any other order than that of the inputs, the codes stand in the order returned.
    Raises CheckpointError for shapes that do not fit each other or the bits, and for zero points that are
    damaged or contradict `symmetric`.
    """
    if bits not in (4, 8):
        raise CheckpointError(f"{name} has {bits}-bit GPTQ codes; labcore reads 4 and 8 bits.")
    _ensure_packed(name, qweight, qzeros, scales)
    each = 32 // bits
    rows, columns = qweight.shape[1], qweight.shape[0] * each
    width = columns if group in (-1, 0) else group
    groups = columns // width
    fits = tuple(scales.shape) == (groups, rows) and tuple(qzeros.shape) == (groups, -(-rows // each))
    if not fits or columns % width:
        raise CheckpointError(_misfit(name, qweight, qzeros, scales, bits, group))
    zero = _unpack(_restored(qzeros, bits, zero_offset, name), bits)[:, :rows].T
    if symmetric:
        _ensure_middle(name, zero, bits, "its checkpoint_format is another one, gptq or gptq_v2")
    q = _unpack(qweight.T.contiguous(), bits)  # (rows, columns)
    order = None
    if g_idx is not None and not torch.equal(g_idx.long(), torch.arange(columns) // width):
        order = g_idx.long().argsort(stable=True)
        if not torch.equal(g_idx.long()[order], torch.arange(columns) // width):
            raise CheckpointError(f"{name} has groups of unequal size in g_idx; fetch the checkpoint again.")
        q = q[:, order]
    return _made(q, bits, width, scales.T, zero), order


def from_awq(
    qweight: Tensor,
    qzeros: Tensor,
    scales: Tensor,
    *,
    bits: int = 4,
    group: int = 128,
    symmetric: bool = False,
    name: str = "a layer",
) -> QuantizedTensor:
    """qweight: (columns, rows / 8). qzeros: (groups, rows / 8). scales: (groups, rows).

    Raises CheckpointError for other bits than 4, shapes that do not fit, and zero points that contradict
    `symmetric`.
    """
    if bits != 4:
        raise CheckpointError(f"{name} has {bits}-bit AWQ codes; labcore reads 4 bits.")
    _ensure_packed(name, qweight, qzeros, scales)
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
    if symmetric:
        _ensure_middle(name, zero, bits, "it has zero points")
    return _made(q.T, 4, width, scales.T, zero.T)


def _ensure_packed(name: str, qweight: Tensor, qzeros: Tensor, scales: Tensor) -> None:
    parts = {"qweight": qweight, "qzeros": qzeros, "scales": scales}
    for part, tensor in parts.items():
        right = tensor.is_floating_point() if part == "scales" else tensor.dtype == torch.int32
        if tensor.dim() != 2 or not tensor.numel() or not right:
            raise CheckpointError(
                f"{name}.{part} is {list(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}; "
                "labcore reads matrices, codes and zero points packed in int32 and scales in floats."
            )


def _restored(qzeros: Tensor, bits: int, lacking: int, name: str) -> Tensor:
    """The words with what the format subtracted from them added again (see above); int32 wraps around."""
    if not lacking:
        return qzeros
    if bool((qzeros >> 8 == -1).any()):
        raise CheckpointError(
            f"{name} has zero points whose tool lost them (a zero point of 0 less one filled the bits of its "
            "neighbours); quantize the model again with GPTQModel."
        )
    return qzeros + lacking * sum(1 << place for place in range(0, 32, bits))


def _ensure_middle(name: str, zero: Tensor, bits: int, guess: str) -> None:
    low, high, middle = int(zero.min()), int(zero.max()), 2 ** (bits - 1)
    if low != middle or high != middle:
        raise CheckpointError(
            f"{name} has zero points from {low} to {high}, where its quantization_config states symmetric "
            f"codes, whose zero point is {middle}; most likely {guess}, so correct the quantization_config."
        )


def _unpack(packed: Tensor, bits: int) -> Tensor:
    """(n, m) int32 -> (n, m * 32 / bits) uint8 codes, lowest bits first; a byte for each from the start,
    because a head has half a billion of them."""
    codes = torch.empty((*packed.shape, 32 // bits), dtype=torch.uint8)
    for place in range(32 // bits):
        codes[..., place] = (packed >> bits * place) & (2**bits - 1)
    return codes.flatten(1)


def _made(q: Tensor, bits: int, width: int, scale: Tensor, zero: Tensor) -> QuantizedTensor:
    """q: (rows, columns) from 0 up. The middle zero point everywhere means symmetric, which needs none."""
    rows, columns = q.shape
    symmetric = bool((zero == 2 ** (bits - 1)).all())
    one = width == columns  # one scale for a whole row
    return QuantizedTensor(
        (rows, columns),
        Format(f"int{bits}", "channel" if one else "group", 0 if one else width, symmetric),
        pack(q, bits).contiguous(),
        scale.contiguous(),
        None if symmetric else zero.contiguous(),
    )


def _misfit(name: str, qweight: Tensor, qzeros: Tensor, scales: Tensor, bits: int, group: int) -> str:
    return (
        f"{name} has qweight {list(qweight.shape)}, qzeros {list(qzeros.shape)} and scales "
        f"{list(scales.shape)}, which do not fit {bits} bits in groups of {group}; its quantization_config "
        "belongs to other weights."
    )
