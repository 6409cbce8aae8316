"""No cache: every step computes every position again. Chapter 2's baseline."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from labcore.cache.base import KVCache
from labcore.perf.costs import CacheTraffic


class NoCache(KVCache):
    """Keeps nothing. Its length stays 0, so the generation loop feeds all known tokens at every step."""

    kind: ClassVar[str] = "none"

    @property
    def traffic(self) -> CacheTraffic:
        """Nothing is read: everything is computed again."""
        return CacheTraffic(recomputes=True)

    @property
    def nbytes(self) -> int:
        """Nothing is held between steps."""
        return 0

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The step's own keys and values are all there is."""
        return k, v

    def commit(self) -> None:
        """Forget the step."""

    def select(self, rows: Tensor) -> None:
        """Only the padding is remembered per sequence."""
        self.batch_size = len(rows)
        self.padding = self.padding[rows] if self.padding is not None else None
