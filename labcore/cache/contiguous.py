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
        self._starts = None if self.padding is None else self.padding.int()
        self._memory = native.KVMemory.bind(self.store, self.config.num_attention_heads)

    def begin(self, n: int) -> Tensor:
        """As in the contract."""
        positions = super().begin(n)
        if n == 1 and self.device.type == "cuda":
            self._lens = torch.full((self.batch_size,), self._length + 1, device=self.device)
        return positions

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As in the contract; a decode step writes and attends in one native call, on a GPU in one launch."""
        # The readable path (fast=False) stays readable throughout.
        one = self._new == 1 and native.of_native_layer(q, k, v)
        if one and (found := self.native_step()) and found[0].takes(q, k, v):
            return found[0].attend(layer, q, k, v, found[1])
        if self._new == 1 and self.observer is None and takes(q):
            return kernels.contiguous_decode(
                q, k, v, self.store[layer], self._lens, longest=self._length + 1, starts=self._starts
            )
        return super().attend(layer, q, k, v)

    @property
    def packed(self) -> bool:
        """One sequence without padding."""
        return self._memory is not None and self.observer is None and self._is_single

    @property
    def _is_single(self) -> bool:
        return self.batch_size == 1 and self.padding is None

    def native_step(self) -> tuple[native.KVMemory, native.NewTokens] | None:
        """As in the contract: one new token of each sequence, or several of a single one."""
        if self._memory is None or self.observer is not None:
            return None
        longest = self._length + self._new
        if self._new == 1:
            lengths = torch.full((self.batch_size,), longest, dtype=torch.int32)
            return self._memory, native.NewTokens(lengths, longest, starts=self._starts)
        if not self._is_single:
            return None
        lengths = torch.arange(self._length + 1, longest + 1, dtype=torch.int32)
        return self._memory, native.NewTokens(lengths, longest, sequences=torch.zeros_like(lengths))

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
