"""What the exercises of lesson 7 are tried on, and the grids with a mistake in them."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(random.randrange(1 << 30))


def near_codes(lowest: int, highest: int, count: int = 24) -> Tensor:
    """Numbers at most 0.4 from an integer of this range: no formula's last digit decides how they round."""
    stream = seeded()
    codes = torch.randint(lowest, highest + 1, (count,), generator=stream)
    return codes + 0.8 * (torch.rand(count, generator=stream) - 0.5)


def on_copies(answer: Any) -> Any:
    """The answer, given copies of its tensors: one that works in place must not change the reference's."""
    if not callable(answer):
        return answer
    return lambda *case: answer(*(part.clone() if isinstance(part, Tensor) else part for part in case))


def loud(bits: int) -> tuple[Tensor, int]:
    """A vector whose largest magnitude is a negative number's."""
    top = 2 ** (bits - 1) - 1
    x = near_codes(1 - top, top - 1)
    x[random.randrange(len(x))] = -top
    return x * random.uniform(0.05, 3), bits


def astride(bits: int) -> tuple[Tensor, int]:
    """A vector on both sides of 0, whose 0 lies between two codes before it is put on one."""
    last = 2**bits - 1
    zero, off = random.randint(1, last - 1), random.choice((-1, 1)) * random.uniform(0.15, 0.35)
    x = near_codes(1 - zero, last - zero - 1)
    x[0], x[1] = -(zero + off), last - zero - off
    return x * random.uniform(0.1, 3), bits


def other_grid(spans_zero: bool = True, steps: int = 0, whole: bool = True, added: bool = True) -> Any:
    """`with_zero_point` with a mistake in it."""

    def made(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
        edges = torch.cat([x, x.new_zeros(int(spans_zero))])
        scale = (edges.max() - edges.min()) / (2**bits - 1 + steps)
        zero = -edges.min() / scale
        zero = zero.round() if whole else zero
        return (x / scale + (zero if added else 0)).round().clamp(0, 2**bits - 1), scale, zero

    return made


def outlying(width: int, alpha: float) -> tuple[Tensor, Tensor, float]:
    """A square layer, so that no mix-up of rows and columns raises. Each column's largest is negative."""
    stream = seeded()
    weight = torch.randn(width, width, generator=stream)
    weight[0].abs_()
    weight[1] = -4 - 8 * torch.rand(width, generator=stream)
    return 0.5 + 60 * torch.rand(width, generator=stream).pow(4), weight, alpha


def midway(rows: int, columns: int, j: int) -> tuple[Tensor, Tensor, int, Tensor]:
    """A step on inputs that have something in common, so that one column can stand in for another."""
    stream = seeded()
    shared = torch.randn(8 * columns, 1, generator=stream)
    x = (torch.randn(8 * columns, columns, generator=stream) + shared).double()
    hessian = x.T @ x * (2 / len(x))
    upper = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True).float()
    weight = torch.randn(rows, columns, generator=stream)
    return weight, (2 * weight[:, j]).round() / 2, j, upper
