"""The textbook cache: concatenate the new keys and values to the old ones at each step.

Simple, and every step copies all that is held: O(n²) bytes for n tokens, which `copied_bytes` counts.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from labcore.cache.base import KVCache
from labcore.perf.costs import CacheTraffic


class GrowingCache(KVCache):
    """Exactly as large as what it holds; pays for that with copies."""

    kind: ClassVar[str] = "growing"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        empty = torch.empty(self._layer_shape(0), device=self.device, dtype=self.dtype)
        self.keys = [empty] * self.config.num_hidden_layers
        self.values = [empty] * self.config.num_hidden_layers

    @property
    def traffic(self) -> CacheTraffic:
        """Each step copies everything held."""
        return CacheTraffic(copies=True)

    @property
    def nbytes(self) -> int:
        """Bytes of all layers' keys and values."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Concatenate; the narrowing drops what an interrupted step may have left behind."""
        held = self._length
        self.keys[layer] = torch.cat([self.keys[layer][:, :, :held], k], dim=2)
        self.values[layer] = torch.cat([self.values[layer][:, :, :held], v], dim=2)
        self.copied_bytes += self.keys[layer].nbytes + self.values[layer].nbytes - k.nbytes - v.nbytes
        return self.keys[layer], self.values[layer]

    def truncate(self, n: int) -> None:
        """Forget everything from position n on, and free its memory."""
        super().truncate(n)
        self.keys = [tensor[:, :, :n].clone() for tensor in self.keys]
        self.values = [tensor[:, :, :n].clone() for tensor in self.values]

    def select(self, rows: Tensor) -> None:
        """Gather the sequences' rows into new tensors."""
        self.keys = [tensor[rows] for tensor in self.keys]
        self.values = [tensor[rows] for tensor in self.values]
        self.padding = self.padding[rows] if self.padding is not None else None
        self.batch_size = len(rows)
