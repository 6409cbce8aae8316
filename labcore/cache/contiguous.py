"""The cache that serves: room for the whole sequence reserved at once, each step written in place."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from labcore.cache.base import KVCache


class ContiguousCache(KVCache):
    """One (2, B, h_kv, capacity, d) tensor per layer. Nothing is ever copied but the new tokens."""

    kind: ClassVar[str] = "contiguous"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._refuse_if_too_big(self._bytes_for(self._limit))
        shape = (2, *self._layer_shape(self._limit))
        self.store = [
            torch.empty(shape, device=self.device, dtype=self.dtype)
            for _ in range(self.config.num_hidden_layers)
        ]

    @property
    def nbytes(self) -> int:
        """Bytes reserved, whether filled or not."""
        return sum(tensor.nbytes for tensor in self.store)

    @property
    def capacity(self) -> int:
        """Positions reserved per sequence."""
        return self._limit

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write behind what is held and return views of the filled part."""
        start, end = self._length, self._length + self._new
        keys, values = self.store[layer].unbind()
        keys[:, :, start:end] = k
        values[:, :, start:end] = v
        return keys[:, :, :end], values[:, :, :end]

    def select(self, rows: Tensor) -> None:
        """Gather the sequences' rows; only the filled part is copied, in place when their number stays."""
        held = self._length
        for layer, old in enumerate(self.store):
            filled = old[:, rows, :, :held]  # indexing by a tensor copies
            if len(rows) != self.batch_size:
                shape = (2, *self._layer_shape(self._limit, len(rows)))
                self.store[layer] = torch.empty(shape, device=self.device, dtype=self.dtype)
            self.store[layer][:, :, :, :held] = filled
        self.padding = self.padding[rows] if self.padding is not None else None
        self.batch_size = len(rows)
