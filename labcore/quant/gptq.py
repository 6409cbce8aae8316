"""GPTQ (Frantar et al. 2023): round one column after another, and let the columns to come make up for it.

The error of a layer's output is tr(E H Eᵀ) with H = 2/N Σ x xᵀ over calibration inputs. Rounding column j by
e moves the columns after it by -e · U[j, j+1:] / U[j, j], U the upper Cholesky factor of H's inverse (from
Optimal Brain Surgeon). Columns are done in blocks: the update of all later ones is one product a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from labcore.errors import ConfigError
from labcore.quant.formats import Format, QuantizedTensor, encode, grid

ATTEMPTS = 4  # each with ten times the damping


class Hessian:
    """2/N Σ x xᵀ over the inputs of a layer, gathered batch by batch: columns² numbers, whatever N is."""

    def __init__(self, columns: int, device: torch.device | str = "cpu") -> None:
        self.sum = torch.zeros(columns, columns, dtype=torch.float32, device=device)
        self.count = 0

    def add(self, x: Tensor) -> None:
        """x: (..., columns)."""
        flat = x.reshape(-1, x.shape[-1]).float()
        self.sum.addmm_(flat.T, flat)
        self.count += flat.shape[0]

    def matrix(self) -> Tensor:
        """(columns, columns). Raises ConfigError where nothing was added."""
        if not self.count:
            raise ConfigError("GPTQ saw no calibration input for a layer; give calibration texts.")
        return self.sum * (2 / self.count)


def gptq(
    weight: Tensor,
    hessian: Tensor,
    fmt: Format,
    *,
    block: int = 128,
    damping: float = 0.01,
    act_order: bool = False,
) -> tuple[QuantizedTensor, Tensor | None]:
    """Codes of weight (rows, columns) that lose little on the inputs that hessian (columns, columns) is of.

    block: columns between two updates of all later ones; it changes nothing but time. damping: added to the
    diagonal, as a share of its mean. act_order: columns of large inputs first; the codes then stand in that
    order, which is returned for the inputs to be permuted by.
    Raises ConfigError for fp8 or nf4, for groups that do not divide, for a hessian of another size or one
    that cannot be factored.
    """
    rows, columns = weight.shape
    _check(columns, hessian, fmt)
    work, h = weight.detach().float().clone(), hessian.float().clone()
    dead = h.diagonal() == 0  # inputs that were always nothing: their weights do not matter
    h.diagonal()[dead] = 1
    work[:, dead] = 0
    order = h.diagonal().argsort(descending=True, stable=True) if act_order else None
    if order is not None:
        work, h = work[:, order], h[order][:, order]
    upper = _inverse_factor(h, damping)
    width = fmt.width(columns)
    scale, zero = grid(work, fmt)
    scale = scale.float()  # groups are set anew from updated weights, each rounded to fp16
    rounded = torch.empty_like(work)
    for start in range(0, columns, block):
        end = min(start + block, columns)
        errors = torch.zeros_like(work[:, start:end])
        for j in range(start, end):
            g = j // width
            if fmt.granularity == "group" and j % width == 0:
                _set_group(work, upper, errors, start, j, width, fmt, scale, zero, end)
            column = work[:, j : j + 1]
            q = _round(column, fmt, scale[:, g : g + 1], None if zero is None else zero[:, g : g + 1])
            error = (column - q)[:, 0] / upper[j, j]
            rounded[:, j] = q[:, 0]
            errors[:, j - start] = error
            work[:, j + 1 : end] -= error[:, None] * upper[j, j + 1 : end]
        work[:, end:] -= errors @ upper[start:end, end:]
    return encode(rounded, fmt, _storable(scale), zero), order


def _set_group(
    work: Tensor, upper: Tensor, errors: Tensor, start: int, j: int, width: int, fmt: Format,
    scale: Tensor, zero: Tensor | None, end: int,
) -> None:  # fmt: skip
    """A group's grid from its weights as they stand, errors of this block so far included."""
    current = work[:, j : j + width].clone()
    if j + width > end:  # columns behind this block have not been told of its errors yet
        current[:, end - j :] -= errors @ upper[start:end, end : j + width]
    whole = Format(fmt.dtype, "channel", 0, fmt.symmetric)
    found, found_zero = grid(current, whole)
    scale[:, j // width] = found[:, 0].float()
    if zero is not None and found_zero is not None:
        zero[:, j // width] = found_zero[:, 0]


def _round(column: Tensor, fmt: Format, scale: Tensor, zero: Tensor | None) -> Tensor:
    """The nearest values of the grid, (rows, 1)."""
    if zero is not None:
        q = ((column / scale).round() + zero).clamp(0, 2**fmt.bits - 1)
        return (q - zero) * scale
    top = 2 ** (fmt.bits - 1) - 1
    return (column / scale).round().clamp(-top, top) * scale


def _storable(scale: Tensor) -> Tensor:
    """fp16 where that loses nothing: scales came as fp16 numbers, or as fp32 where they are too small."""
    half = scale.half()
    return half if torch.equal(half.float(), scale) else scale


def _inverse_factor(h: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor of the inverse."""
    share = damping
    for _ in range(ATTEMPTS):
        damped = h.double()  # the inverse of an inverse: fp32 runs out of digits
        damped.diagonal().add_(share * float(damped.diagonal().mean()))
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                return upper.to(h.dtype)
        share = max(share, 1e-4) * 10
    raise ConfigError(
        f"GPTQ's matrix of inputs cannot be inverted even with {share / 10:g} of damping; "
        "give more calibration texts."
    )


def _check(columns: int, hessian: Tensor, fmt: Format) -> None:
    if not fmt.is_integer:
        raise ConfigError(
            f"GPTQ rounds to integers, and {fmt.dtype} is none; choose int8, int4, int3 or int2."
        )
    if hessian.shape != (columns, columns):
        raise ConfigError(
            f"GPTQ's matrix of inputs is {list(hessian.shape)} for a weight of {columns} columns; "
            "calibrate this layer's own inputs."
        )
    fmt.width(columns)
