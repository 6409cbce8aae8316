"""Keys and values in host memory; on the device only the layer that attends and the one that comes next.

On a GPU the host's memory is pinned and the next layer's keys and values are fetched on a stream of their own
while this layer computes (as FlexGen and transformers' OffloadedCache do); what is new goes back the same
way. On a CPU the device is the host, and the copy through the staging buffer is pure cost: `copied_bytes`
tells it.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from labcore.cache.base import KVCache
from labcore.errors import OutOfMemory
from labcore.perf.costs import CacheTraffic
from labcore.perf.machine import available_memory, within_budget


class OffloadedCache(KVCache):
    """host: one (2, B, h_kv, capacity, d) tensor a layer; staging: two of them on the device, used in turn.

    prefetch: fetch the next layer while this one computes; False: each layer waits for its own.
    """

    kind: ClassVar[str] = "offloaded"
    settings: ClassVar[tuple[str, ...]] = ("prefetch",)

    def __init__(self, *args: Any, prefetch: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.prefetch = prefetch
        self._on_gpu = self.device.type == "cuda"
        self._stream: Any = torch.cuda.Stream(self.device) if self._on_gpu else None
        self._refuse()
        shape, layers = (2, *self._layer_shape(self._limit)), self.config.num_hidden_layers
        self.host = [torch.empty(shape, dtype=self.dtype, pin_memory=self._on_gpu) for _ in range(layers)]
        buffers = 2 if self.prefetch and layers > 1 else 1
        self.staging = [torch.empty(shape, device=self.device, dtype=self.dtype) for _ in range(buffers)]
        self._arm()

    def _arm(self) -> None:
        """Nothing is fetched, nothing is in use. Events: when a buffer was filled, when it was last read."""
        self._holds: list[int | None] = [None] * len(self.staging)  # which layer's past each buffer has
        self._filled = [torch.cuda.Event() for _ in self.staging] if self._on_gpu else []
        self._read = [torch.cuda.Event() for _ in self.staging] if self._on_gpu else []

    def _refuse(self) -> None:
        layer = self._bytes_for(self._limit) // self.config.num_hidden_layers
        self._refuse_if_too_big(2 * layer)
        free, needed = available_memory("cpu"), self._bytes_for(self._limit)
        if needed > free:
            raise OutOfMemory(
                f"An offloaded cache of {self._limit} positions x {self.batch_size} sequences needs "
                f"{needed / 1e9:.2f} GB of host memory and {free / 1e9:.2f} GB{within_budget()} are free; "
                f"ask for at most {free // max(1, self._bytes_for(1))} positions, or for fewer sequences."
            )

    @property
    def traffic(self) -> CacheTraffic:
        """Everything held is fetched from the host's memory."""
        return CacheTraffic(host=True)

    @property
    def nbytes(self) -> int:
        """Bytes of the staging buffers."""
        return sum(tensor.nbytes for tensor in self.staging)

    @property
    def host_nbytes(self) -> int:
        """Bytes of all layers' keys and values in host memory."""
        return sum(tensor.nbytes for tensor in self.host)

    @property
    def capacity(self) -> int:
        """Positions reserved per sequence."""
        return self._limit

    def begin(self, n: int) -> Tensor:
        """As in the contract; the first layer's past is on its way when this returns."""
        positions = super().begin(n)
        self._holds = [None] * len(self.staging)
        self._fetch(0)
        return positions

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Wait for this layer's past, ask for the next one's, and write what is new here and in the host."""
        held, new = self._length, self._new
        if self._holds[layer % len(self.staging)] != layer:
            self._fetch(layer)
        buffer = self._wait_for(layer)
        if self.prefetch and layer + 1 < len(self.host):
            self._fetch(layer + 1)
        both = torch.stack([k, v])
        buffer.narrow(3, held, new).copy_(both)
        self.host[layer].narrow(3, held, new).copy_(both, non_blocking=self._on_gpu)
        self.copied_bytes += both.nbytes
        keys, values = buffer.narrow(3, 0, held + new).unbind()
        return keys, values

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As in the contract; then the buffer may be filled again."""
        out = super().attend(layer, q, k, v)
        if self._on_gpu:
            self._read[layer % len(self.staging)].record()
        return out

    def _fetch(self, layer: int) -> None:
        """Start to copy a layer's past to its buffer, once whoever used the buffer before has read it."""
        turn = layer % len(self.staging)
        past = self.host[layer].narrow(3, 0, self._length)
        target = self.staging[turn].narrow(3, 0, self._length)
        self._holds[turn] = layer
        self.copied_bytes += past.nbytes
        if not self._on_gpu:
            target.copy_(past)
            return
        # What the last step sent to this host tensor was sent on the compute stream: it must have arrived.
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        self._stream.wait_event(self._read[turn])
        with torch.cuda.stream(self._stream):
            target.copy_(past, non_blocking=True)
            self._filled[turn].record(self._stream)

    def _wait_for(self, layer: int) -> Tensor:
        turn = layer % len(self.staging)
        if self._on_gpu:
            torch.cuda.current_stream(self.device).wait_event(self._filled[turn])
        return self.staging[turn]

    def fork(self) -> Self:
        """A copy of the host's tensors, with staging buffers of its own."""
        self._settle()
        twin = super().fork()
        twin._stream = torch.cuda.Stream(self.device) if self._on_gpu else None
        twin._arm()
        return twin

    def select(self, rows: Tensor) -> None:
        """Gather the sequences' rows in host memory."""
        self._settle()
        picked = rows.cpu()
        self.host = [self._pinned(tensor[:, picked]) for tensor in self.host]
        self.padding = self.padding[rows] if self.padding is not None else None
        self.batch_size = len(rows)
        shape = (2, *self._layer_shape(self._limit))
        self.staging = [torch.empty(shape, device=self.device, dtype=self.dtype) for _ in self.staging]
        self._arm()

    def _settle(self) -> None:
        """Wait until no copy is under way."""
        if self._on_gpu:
            torch.cuda.synchronize(self.device)

    def _pinned(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory() if self._on_gpu else tensor
