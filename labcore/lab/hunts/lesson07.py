"""Hunts of lesson 7: scales that meet the wrong weights, and codes that come back in another's place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from labcore.kernels.packing import pack
from labcore.lab.exercises.checking import Verdict, of_faults
from labcore.lab.hunts.registry import planted
from labcore.quant.formats import Format, quantize_tensor
from labcore.quant.quantizing import relative_error

EXACT = 1e-5  # relative error that fp32 may leave
# Rows, columns, rows of scales, groups, zero points. In the first and the third layer a group has as many
# columns as there are rows: scales lined up with columns raise nothing there.
LAYERS = (
    (64, 64, 64, 1, False),
    (32, 64, 32, 1, False),
    (32, 128, 32, 4, True),
    (96, 64, 96, 1, True),
    (16, 128, 16, 4, False),
    (48, 64, 1, 1, True),
)
PACKED = (4, 2, 1, 3, 8)  # bits


@planted(
    "07.A",
    title="Square enough to fool you",
    target="labcore.quant.formats:apply_grid",
    bug=(("grouped * scale.float()[..., None]", "grouped * scale.float().T[None]"),),
    minutes=6,
    hints=(
        "A square layer raises nothing and is wrong, a wide one raises. Print the shapes of both factors.",
        "grouped is (rows, groups, columns of a group), scale (rows, groups). Which axis of grouped has no "
        "scale of its own?",
        "Shapes are lined up from the right, so the scale needs a last axis of size 1 to meet the columns.",
    ),
)
def _check_scales(suspect: Callable[..., Any]) -> Verdict:
    """Square, wide and tall layers, groups, zero points: against a scale written out for each weight."""
    stream = torch.Generator().manual_seed(0)
    faults = []
    for rows, columns, lines, groups, zeros in LAYERS:
        width = columns // groups
        q = torch.randint(0, 16, (rows, columns), generator=stream).float()
        scale = torch.rand(lines, groups, generator=stream) + 0.1
        zero = torch.randint(0, 16, (lines, groups), generator=stream).to(torch.uint8) if zeros else None
        shift = 0 if zero is None else zero.float().repeat_interleave(width, 1)
        wanted = (q - shift) * scale.repeat_interleave(width, 1)
        found = _result(suspect, (q, scale, zero), wanted.shape)
        if told := found if isinstance(found, str) else _off(found, wanted):
            faults.append(f"A layer of {rows} × {columns} weights and {lines} × {groups} scales {told}.")
    return of_faults(faults, len(LAYERS), "layers", "each scale meets the weights that share it", told=2)


@planted(
    "07.B",
    title="The byte that was read backwards",
    target="labcore.kernels.packing:unpack",
    bug=(("for place in range(8 // bits)", "for place in reversed(range(8 // bits))"),),
    minutes=6,
    hints=(
        "Pack 16 codes of which only the first is not 0 and unpack them: where does it come back?",
        "`pack` puts the first part of a row into the lowest bits. Which part does `unpack` put first?",
    ),
)
def _check_order(suspect: Callable[..., Any]) -> Verdict:
    """Round trips of `pack` in all widths, and the product with a layer of 4 bits.

    Three bits call `unpack` by its name for two and one; in a notebook that is labcore's own.
    """
    stream = torch.Generator().manual_seed(0)
    faults = []
    for bits in PACKED:
        codes = torch.randint(0, 2**bits, (4, 32), generator=stream).to(torch.uint8)
        found = _result(suspect, (pack(codes, bits), bits), codes.shape)
        if told := found if isinstance(found, str) else _misplaced(found, codes):
            faults.append(f"Unpacking {bits} bit{'s' if bits > 1 else ''} {told}.")
    if told := _product(suspect, stream):
        faults.insert(1, f"The product with a 64 × 64 layer of 4 bits {told}.")
    return of_faults(faults, len(PACKED) + 1, "tests", "every code is back in its place", told=2)


def _product(suspect: Callable[..., Any], stream: torch.Generator) -> str:
    """What is wrong with weights @ inputs when these are the unpacked weights; "" for nothing."""
    weight, x = torch.randn(64, 64, generator=stream), torch.randn(64, 8, generator=stream)
    held = quantize_tensor(weight, Format("int4", "channel"))
    found = _result(suspect, (held.codes, 4), weight.shape)
    if isinstance(found, str):
        return found
    wanted = held.dequantize() @ x
    told = _off(((found.float() - 8) * held.scale.float()) @ x, wanted)
    return told and f"{told}, where rounding costs {relative_error(wanted, weight @ x):.2f}"


def _result(suspect: Callable[..., Any], given: tuple[Any, ...], shape: torch.Size) -> Tensor | str:
    """What the suspect makes of copies of these; in words where that is no tensor of this shape."""
    try:
        found = suspect(*(part.clone() if isinstance(part, Tensor) else part for part in given))
    except Exception as error:
        return f"ends in {type(error).__name__}: {str(error).rstrip('.')}"
    if isinstance(found, Tensor) and found.shape == shape:
        return found
    got = f"a tensor of {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
    return f"gives {got}, and should give a tensor of {list(shape)}"


def _off(found: Tensor, wanted: Tensor) -> str:
    error = relative_error(found, wanted)
    return "" if error <= EXACT else f"raises nothing and is wrong: relative error {error:.2g}"


def _misplaced(found: Tensor, codes: Tensor) -> str:
    wrong = int((found != codes).sum())
    if not wrong:
        return ""
    first, back = codes[0, ::8].tolist(), found[0, ::8].tolist()
    return f"changes {wrong} of {codes.numel()} codes: every eighth of a row was {first} and is {back}"
