"""The cache that serves: room for the whole sequence reserved at once, each step written in place."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from labcore import kernels
from labcore.cache.base import KVCache
from labcore.kernels import native
from labcore.kernels.on_gpu import takes


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
        self._bind()

    def _bind(self) -> None:
        """Bind the native decode kernel to the stores, where there is one."""
        self._decode: list[native.DecodeAttention] = []
        self._starts = None if self.padding is None else self.padding.int()
        if self.device.type == "cpu" and self.dtype == torch.float32 and native.available():
            heads = self.config.num_attention_heads
            self._decode = [native.DecodeAttention(store, heads) for store in self.store]
            self._lengths = torch.zeros(self.batch_size, dtype=torch.int32)

    def begin(self, n: int) -> Tensor:
        """As in the contract."""
        positions = super().begin(n)
        if n == 1 and self.device.type == "cuda":
            self._lens = torch.full((self.batch_size,), self._length + 1, device=self.device)
        return positions

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As in the contract; a decode step writes and attends in one native call, on a GPU in one launch."""
        if self._new == 1 and self._decode and self.observer is None:
            decode = self._decode[layer]
            # The readable path (fast=False) stays readable throughout.
            if native.of_native_layer(q, k, v) and decode.takes(q, k, v):
                longest = self._length + 1
                if layer == 0:
                    self._lengths.fill_(longest)
                return decode(q, k, v, self._lengths, longest=longest, starts=self._starts)
        if self._new == 1 and self.observer is None and takes(q):
            return kernels.contiguous_decode(
                q, k, v, self.store[layer], self._lens, longest=self._length + 1, starts=self._starts
            )
        return super().attend(layer, q, k, v)

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
        held, new = self._length, self._new
        keys, values = self.store[layer].unbind()
        # narrow is [:, :, a:b] without the cost of parsing an index, which a small model feels
        keys.narrow(2, held, new).copy_(k)
        values.narrow(2, held, new).copy_(v)
        return keys.narrow(2, 0, held + new), values.narrow(2, 0, held + new)

    def fork(self) -> Self:
        """A copy of the stores, with its own kernels bound to them."""
        twin = super().fork()
        twin._bind()
        return twin

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
        self._bind()
