"""Facts about grids that hold on every machine, as rows: what bits, scales and outliers do to the error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from labcore.lab.microscope import decibels
from labcore.quant.formats import Format, apply_grid, encode, grid, quantize_tensor


def snr_of(weight: Tensor, fmt: Format, rows_at_once: int = 64) -> float:
    """SQNR in dB of a round trip, a few rows at a time, so that a large matrix stays in the CPU's caches."""
    shared = grid(weight, fmt) if fmt.granularity == "tensor" else None
    signal = error = 0.0
    for part in weight.split(rows_at_once):
        back = encode(part, fmt, *(shared or grid(part, fmt))).dequantize()
        signal += float(part.square().sum())
        error += float((part - back).square().sum())
    return decibels(signal, error)


def snr_rows(seed: int = 0, side: int = 4096) -> list[dict[str, Any]]:
    """Absmax SNR of normal numbers, side x side, by bits and by what shares a scale."""
    weight = torch.randn(side, side, generator=torch.Generator().manual_seed(seed))
    scopes = {
        "one scale": "granularity=tensor",
        "a scale a row": "granularity=channel",
        "a scale for 128": "group=128",
    }
    return [
        {"bits": int(dtype[3:])}
        | {
            f"{words} (dB)": f"{snr_of(weight, Format.parse(f'{dtype}:{scope}')):.1f}"
            for words, scope in scopes.items()
        }
        for dtype in ("int8", "int4")
    ]


def bit_rows(seed: int = 0, count: int = 1 << 20) -> list[dict[str, Any]]:
    """Uniform numbers on an even grid of 2 to 8 bits whose steps share out their range: a bit is 6.02 dB.

    Each level lies in the middle of its step of Δ = range / 2**bits, so the error is uniform over a step and
    its mean square Δ²/12.
    """
    x = 2 * torch.rand(1, count, generator=torch.Generator().manual_seed(seed)) - 1
    signal, before = float(x.square().mean()), None
    rows = []
    for bits in range(2, 9):
        step, middle = torch.full((1, 1), 2.0 / 2**bits), torch.full((1, 1), (2**bits - 1) / 2)
        q = (x / step + middle).round().clamp(0, 2**bits - 1)
        mse = float((apply_grid(q, step, middle) - x).square().mean())
        snr = decibels(signal, mse)
        rows.append(
            {
                "bits": bits,
                "SNR (dB)": f"{snr:.2f}",
                "more than the row before": None if before is None else f"{snr - before:.2f}",
                "MSE (millionths)": f"{1e6 * mse:.1f}",
                "Δ²/12 (millionths)": f"{1e6 * float(step) ** 2 / 12:.1f}",
            }
        )
        before = snr
    return rows


def absmax_rows(values: Sequence[float] = (0.1, -0.2, 0.3, 60.0), group: int = 2) -> list[dict[str, Any]]:
    """A row with an outlier in int8: one scale for all of it, and a scale for each `group` numbers.

    Raises ConfigError where the groups do not divide the row.
    """
    x = torch.tensor([values])
    ways = {"one scale": Format("int8"), f"a scale for {group}": Format("int8", "group", group)}
    rows: list[dict[str, Any]] = [{"x": f"{value:g}"} for value in values]
    for words, fmt in ways.items():
        held = quantize_tensor(x, fmt)
        shared = held.scale.float().repeat_interleave(len(values) // held.scale.shape[1], dim=1)
        columns = {"code": held.integers(), "reads back": held.dequantize(), "Δ": shared}
        for row, *found in zip(rows, *(part[0].tolist() for part in columns.values()), strict=True):
            row |= {f"{words}: {name}": f"{value:.4g}" for name, value in zip(columns, found, strict=True)}
    return rows


EFFECTIVE = (
    "int8", "int4:group=128", "int4:group=64", "int4:group=32,symmetric=false", "int3:group=128",
    "int2:group=64", "nf4:group=64", "fp8_e4m3",
)  # fmt: skip


def effective_rows(
    shape: tuple[int, int] = (4096, 4096), formats: Sequence[str] = EFFECTIVE
) -> list[dict[str, Any]]:
    """Bits that a weight really takes, scales and zero points included, and a matrix's size with them.

    Raises ConfigError for formats that do not exist, or whose groups do not divide the columns.
    """
    rows: list[dict[str, Any]] = []
    for fmt in map(Format.parse, formats):
        bits = fmt.effective_bits(shape)
        lines, groups = fmt.grid_shape(*shape)
        rows.append(
            {
                "format": fmt.label,
                "bits of a code": fmt.bits,
                "scales": lines * groups,
                "effective bits": f"{bits:.3f}",
                "MB": f"{bits * shape[0] * shape[1] / 8e6:.2f}",
                "of fp16": f"{bits / 16:.1%}",
            }
        )
    return rows
