"""Decode steps as CUDA graphs: the hundreds of kernels of a step are launched by one call.

A graph has the addresses of all it touches baked in. So whoever records one owns the memory of the cache: a
generation that decodes through graphs borrows it, and a second one meanwhile gets its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor

from labcore import kernels
from labcore.cache import ContiguousCache
from labcore.generation.static_step import SHORTEST, clear_ahead
from labcore.model import Model
from labcore.model.transformer import Transformer

Run = Callable[[Tensor], Tensor]
Replay = Callable[[], Any]


def bucket_for(positions: int) -> int:
    """How many positions a step spans that must span so many: powers of two, since each is recorded apart."""
    return max(SHORTEST, 1 << (positions - 1).bit_length())


_NOWHERE = -2  # no length follows it


class FixedPlaces:
    """A contiguous cache as a recorded step meets it: what changes from step to step lies in fixed tensors.

    lens: (B,) positions with the step's own; rotary: (B, 1) its place in its text; tokens: (B, 1); all int64.
    """

    def __init__(self, cache: ContiguousCache) -> None:
        batch, device = cache.batch_size, cache.device
        self.stores = cache.store
        with torch.inference_mode(False):
            self.tokens = torch.zeros(batch, 1, dtype=torch.int64, device=device)
            self._numbers = torch.zeros(2, batch, dtype=torch.int64, device=device)
            self._starts = torch.zeros(batch, dtype=torch.int64, device=device)
            self.lens, self.rotary = self._numbers[0], self._numbers[1, :, None]
        self.span = 1  # positions that the step being recorded can reach
        self._length = _NOWHERE  # what the numbers say, to write them anew only where they do not follow

    def fill(self, tokens: Tensor, cache: ContiguousCache) -> None:
        """Take the (B, 1) tokens that come next in the cache."""
        self.tokens.copy_(tokens)
        if cache.length == self._length + 1:
            self._numbers.add_(1)
        else:
            self.lens.fill_(cache.length + 1)
            self._starts.zero_() if cache.padding is None else self._starts.copy_(cache.padding)
            self.rotary.copy_((self.lens - 1 - self._starts).clamp_min(0)[:, None])
        self._length = cache.length

    def begin(self, n: int) -> Tensor:
        """Positions (B, 1)."""
        return self.rotary

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write k and v (B, h_kv, 1, d) at the position; attention of q (B, h, 1, d) up to it."""
        store, starts = self.stores[layer], self._starts
        return kernels.contiguous_decode(q, k, v, store, self.lens, longest=self.span, starts=starts)

    def native_step(self) -> None:
        """Nothing for C kernels: it lies on a GPU."""

    def commit(self) -> None:
        """The cache itself counts."""


class Recorded:
    """A cache's memory and the graphs that were recorded over it, lent to one cache at a time."""

    def __init__(self, transformer: Transformer, cache: ContiguousCache) -> None:
        self.stores, self.capacity, self.batch = cache.store, cache.capacity, cache.batch_size
        self.weights, self.fast = _addresses(transformer), transformer.fast
        self.places = FixedPlaces(cache)
        self._graphs: dict[int, tuple[Replay, Tensor]] = {}
        self._borrower: ReferenceType[ContiguousCache] = ref(cache)

    @property
    def free(self) -> bool:
        """Whether the cache that borrowed the memory is gone."""
        return self._borrower() is None

    def fits(self, transformer: Transformer, cache: ContiguousCache) -> bool:
        """Whether this cache could work on this memory, with weights that lie where they did."""
        wanted = (cache.store[0].dtype, cache.store[0].device, cache.batch_size)
        mine = (self.stores[0].dtype, self.stores[0].device, self.batch)
        same = self.fast == transformer.fast and self.weights == _addresses(transformer)
        return mine == wanted and self.capacity >= cache.capacity and same

    def lend(self, cache: ContiguousCache) -> None:
        """Let an empty cache work on this memory instead of its own."""
        cache.store = self.stores
        self.places._length = _NOWHERE
        cache._bind()
        self._borrower = ref(cache)

    def step(self, transformer: Transformer, bucket: int) -> Tensor:
        """Replay the step that spans the bucket, recorded first if need be -> logits (B, vocab) fp32."""
        if bucket not in self._graphs:
            self.places.span = bucket
            replay, logits, _ = capture(lambda: self._run(transformer), self.places.tokens.device)
            self._graphs[bucket] = replay, logits
        replay, logits = self._graphs[bucket]
        replay()
        return logits.clone()  # the next replay writes over the graph's own

    def _run(self, transformer: Transformer) -> Tensor:
        return transformer(self.places.tokens, self.places, logits_to_keep=1)[:, -1].float()


def capture(run: Callable[[], Tensor], device: torch.device, pool: Any = None) -> tuple[Replay, Tensor, Any]:
    """Record what `run` launches. pool: memory of an earlier graph, to work in too, where the two are never
    replayed at once. Returns the replay, the tensor that each replay fills, and the graph's memory."""
    with torch.cuda.device(device):
        # Libraries set themselves up at first use, which no graph may record: that happens on a side stream.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            logits = run()
    return graph.replay, logits, graph.pool()


def _addresses(transformer: Transformer) -> list[int]:
    """Where the weights lie: a graph over weights that were moved would read freed memory."""
    tensors = [*transformer.parameters(), *transformer.buffers()]
    return [tensor.data_ptr() for tensor in tensors]


_recorded: WeakKeyDictionary[Transformer, list[Recorded]] = WeakKeyDictionary()


def recorded_for(transformer: Transformer, cache: ContiguousCache) -> Recorded:
    """Memory that nobody uses, with its graphs, lent to this empty cache; if none, the cache's own.

    What is free and does not fit is let go: it would hold a cache's worth of memory for nothing.
    """
    kept = _recorded.setdefault(transformer, [])
    fitting = [one for one in kept if one.free and one.fits(transformer, cache)]
    if fitting:
        fitting[0].lend(cache)
        return fitting[0]
    made = Recorded(transformer, cache)
    kept[:] = [one for one in kept if not one.free] + [made]
    return made


class GraphSteps:
    """The decode steps of one generation, whose cache is still empty. eager: for more than one token."""

    def __init__(self, model: Model, cache: ContiguousCache, eager: Run) -> None:
        self.transformer, self.cache, self.eager = model.transformer, cache, eager
        self.recorded = recorded_for(model.transformer, cache)
        self._bucket = 0

    @torch.inference_mode()
    def __call__(self, known: Tensor) -> Tensor:
        """known: (B, t) tokens -> logits (B, vocab) fp32 of the position after them.

        Raises CacheFull, with nothing changed.
        """
        cache = self.cache
        if known.shape[1] != cache.length + 1 or cache.store is not self.recorded.stores:
            return self.eager(known)
        cache.begin(1)
        bucket = min(bucket_for(cache.length + 1), self.recorded.capacity)
        if bucket != self._bucket:
            clear_ahead(cache, bucket)
            self._bucket = bucket
        self.recorded.places.fill(known[:, -1:], cache)
        logits = self.recorded.step(self.transformer, bucket)
        cache.commit()
        return logits
