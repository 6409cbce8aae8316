"""AWQ (Lin et al. 2024): weights that meet large inputs matter most, so stretch them before rounding.

W x = (W s)(x / s). The scale of a column is its mean |input| to a power that is searched for; then each
group's range is clipped where that lowers the error of the output.
"""

from __future__ import annotations

import torch
from torch import Tensor

from labcore.errors import ConfigError
from labcore.quant.formats import Format, QuantizedTensor, encode, fake, grid

GRID = 20  # powers tried, evenly spaced from 0 to 1
CLIPS = 10  # ranges tried, down to (1 - MAX_SHRINK) of the largest weight
MAX_SHRINK = 0.5
SAMPLE = 512  # inputs that errors are computed on
ROWS = 256  # of the weight, at a time: bounds the memory of the clipping search


def search_scale(
    weight: Tensor, inputs: Tensor, fmt: Format, *, steps: int = GRID
) -> tuple[Tensor, list[tuple[float, float]]]:
    """(s (columns,), [(power, mean squared error of the output)]); the curve is U-shaped where outliers are.

    weight: (rows, columns). inputs: (tokens, columns) of the calibration. Power 0 is round to nearest.
    Raises ConfigError without inputs, or with inputs of another width.
    """
    sample = _sample(weight, inputs)
    magnitude = inputs.float().abs().mean(0).clamp_min(1e-4)
    gram = sample.T @ sample / len(sample)  # the error of the output is tr(E G Eᵀ)
    best = torch.ones_like(magnitude)
    curve: list[tuple[float, float]] = []
    for step in range(steps):
        power = step / steps
        s = magnitude.pow(power).clamp_min(1e-4)
        s = s / (s.max() * s.min()).sqrt()
        error = _error(fake(weight.float() * s, fmt) / s - weight.float(), gram)
        if not curve or error < min(found for _, found in curve):
            best = s
        curve.append((power, error))
    return best, curve


def search_clip(
    weight: Tensor, inputs: Tensor, fmt: Format, *, steps: int = CLIPS, max_shrink: float = MAX_SHRINK
) -> Tensor:
    """(rows, groups): the largest magnitude that each group keeps; larger weights are cut off at it.

    Each group's share of the output is looked at alone, and no group is cut where that does not help it.
    """
    sample = _sample(weight, inputs)
    width = fmt.width(weight.shape[1])
    grouped = weight.float().unflatten(1, (-1, width))  # (rows, groups, width)
    parts = sample.unflatten(1, (-1, width))  # (tokens, groups, width)
    gram = torch.einsum("tgi,tgj->gij", parts, parts) / len(sample)
    limits = [_clip_rows(rows, gram, fmt, steps, max_shrink) for rows in grouped.split(ROWS)]
    return torch.cat(limits)


def _clip_rows(rows: Tensor, gram: Tensor, fmt: Format, steps: int, max_shrink: float) -> Tensor:
    whole = Format(fmt.dtype, "group", rows.shape[2], fmt.symmetric)
    largest = rows.abs().amax(-1)  # (rows, groups)
    best, least = largest, None
    for step in range(steps):
        limit = largest * (1 - max_shrink * step / steps)
        cut = rows.clamp(-limit[..., None], limit[..., None])
        gap = fake(cut.flatten(1), whole).view_as(rows) - rows
        error = torch.einsum("rgi,gij,rgj->rg", gap, gram, gap)
        if least is None:
            least = error
        else:
            better = error < least
            best, least = torch.where(better, limit, best), torch.where(better, error, least)
    return best


def awq(weight: Tensor, inputs: Tensor, fmt: Format, *, clip: bool = True) -> tuple[QuantizedTensor, Tensor]:
    """(codes, smooth (columns,)): smooth is 1 / s, which x is multiplied by.

    Clipping needs a scale for each row, so it is left out per tensor.
    """
    s, _ = search_scale(weight, inputs, fmt)
    stretched = weight.float() * s
    if not clip or fmt.granularity == "tensor":
        return encode(stretched, fmt, *grid(stretched, fmt)), 1 / s
    limit = search_clip(stretched, inputs.float() / s, fmt)[..., None]
    cut = stretched.unflatten(1, (limit.shape[1], -1)).clamp(-limit, limit).flatten(1)
    return encode(cut, fmt, *grid(cut, fmt)), 1 / s


def _error(gap: Tensor, gram: Tensor) -> float:
    """Mean squared error of the output for a weight that is off by gap (rows, columns)."""
    return float(((gap @ gram) * gap).sum() / gap.shape[0])


def _sample(weight: Tensor, inputs: Tensor) -> Tensor:
    if inputs.dim() != 2 or not len(inputs) or inputs.shape[1] != weight.shape[1]:
        raise ConfigError(
            f"AWQ needs inputs of {weight.shape[1]} columns and got {list(inputs.shape)}; "
            "give calibration texts."
        )
    count = min(SAMPLE, len(inputs))
    picks = torch.linspace(0, len(inputs) - 1, count, dtype=torch.float32, device=inputs.device).long()
    return inputs[picks].float()
