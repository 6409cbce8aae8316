"""What stands around a product in a decode step, and can be computed along with it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

ADD, GATE, TURN = 1, 2, 3  # what follows a product, besides its bias


@dataclass(frozen=True)
class Around:
    """The neighbours of a product of one token, y = W x.

    bias (rows,). norm: the weight (columns,) of the RMS norm before it, with its eps. then: ADD a residual
    (1, ..., rows); GATE, silu of the first half of the rows times the second; TURN the first `turned` heads
    of 2 * half rows by angles, cos and sin as `Rope` makes them. 0: nothing.
    """

    bias: Tensor | None = None
    norm: Tensor | None = None
    eps: float = 0.0
    then: int = 0
    residual: Tensor | None = None
    half: int = 1
    angles: tuple[Tensor, Tensor] | None = None
    turned: int = 0

    def rows(self, rows: int) -> int:
        """How many numbers come out of a matrix of so many rows."""
        return rows // 2 if self.then == GATE else rows


NOTHING = Around()
