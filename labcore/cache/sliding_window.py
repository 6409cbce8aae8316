"""The rolling buffer: each query sees the last `window` positions, and no more are kept (Mistral 7B,
2023).

Position t lives in entry t mod window, so that a new token overwrites the one that has just left the
window. Keys keep the rotation of their true position; attention sees only distances, which never exceed
the window, so that text can go on past the length the model was trained to.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from labcore import kernels
from labcore.cache.base import KVCache, Observer
from labcore.config import ModelConfig
from labcore.errors import ConfigError, NotSupported
from labcore.kernels import reference
from labcore.perf.costs import CacheTraffic

# Queries of a long chunk are attended in blocks, so that its masks stay small.
BLOCK = 512


def window_mask(queries: Tensor, keys: Tensor, window: int) -> Tensor:
    """Which keys each query sees, its own included. queries: (n,), keys: (T,) positions -> (n, T) bool."""
    distance = queries[:, None] - keys
    return (distance >= 0) & (distance < window)


def ring_slots(length: int, window: int, device: torch.device) -> Tensor:
    """(window,) int64: the position that each entry holds once `length` were written, negative where none."""
    last = length - 1
    return last - (last - torch.arange(window, device=device)) % window


class SlidingWindowCache(KVCache):
    """One (2, B, h_kv, window, d) tensor per layer, written in a circle.

    window: positions a query sees, its own included (default: the model's sliding_window).
    """

    kind: ClassVar[str] = "sliding_window"
    settings: ClassVar[tuple[str, ...]] = ("window",)
    endless: ClassVar[bool] = True
    rewinds: ClassVar[bool] = False

    def __init__(self, *args: Any, window: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.window = _checked_window(window, self.config)
        self._written = 0  # positions written, those of an interrupted step included
        self._max_padding = 0 if self.padding is None else int(self.padding.max())
        self._pending: dict[int, tuple[Tensor, ...]] = {}
        self._allocate(self.window)

    def _allocate(self, entries: int) -> None:
        self._limit = entries
        self._refuse_if_too_big(self._bytes_for(entries))
        shape = (2, *self._layer_shape(entries))
        layers = range(self.config.num_hidden_layers)
        self.store = [torch.zeros(shape, device=self.device, dtype=self.dtype) for _ in layers]

    @property
    def traffic(self) -> CacheTraffic:
        """A query sees the window."""
        return CacheTraffic(kept=self.window)

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers, whether filled or not."""
        return sum(tensor.nbytes for tensor in self.store)

    @property
    def kept(self) -> int:
        """The last `window` positions at most."""
        return min(self._length, self.window)

    def begin(self, n: int) -> Tensor:
        """As in the contract. What an interrupted step left pending is forgotten."""
        self._pending.clear()
        return super().begin(n)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention over the window. One token is written in place; a chunk once the step counts."""
        if self._new == 1:
            return self._attend_one(layer, q, k, v)
        return self._attend_chunk(layer, q, k, v)

    def commit(self) -> None:
        """Write what a chunk has left pending, and count it."""
        for layer, parts in self._pending.items():
            self._write(layer, *parts)
        self._pending.clear()
        super().commit()
        self._written = self._length

    def truncate(self, n: int) -> None:
        """Forget everything from position n on. Refused when what that needs was overwritten."""
        oldest = max(0, self._written - self.window)
        if 0 < n < self._length and oldest > max(0, n - self.window + 1):
            raise NotSupported(
                f"The {self.kind} cache cannot go back from {self._length} to {n} positions: its window of "
                f"{self.window} has overwritten those before {oldest}; truncate to 0, or use a contiguous "
                "cache."
            )
        super().truncate(n)
        self._written = 0 if n == 0 else self._written

    def select(self, rows: Tensor) -> None:
        """Gather the sequences' rows."""
        self.store = [tensor[:, rows] for tensor in self.store]
        self.padding = self.padding[rows] if self.padding is not None else None
        self.batch_size = len(rows)

    # One token

    def _attend_one(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        entry = self._length % self.window
        keys, values = self.store[layer].unbind()
        keys[:, :, entry : entry + 1] = k
        values[:, :, entry : entry + 1] = v
        self._written = max(self._written, self._length + 1)
        filled = min(self._length + 1, self.window)
        keys, values, mask = keys[:, :, :filled], values[:, :, :filled], self._mask
        if self.observer is not None:
            held = ring_slots(self._length + 1, self.window, self.device)[:filled]
            self.observer(layer, lambda: reference.attention_weights(q, keys, mask), held)
        return kernels.attention(q, keys, values, mask=mask)

    def _make_mask(self, slots: Tensor, n: int) -> Tensor | None:
        """For one token: which entries are real, (B, 1, 1, filled); a chunk makes its masks by block."""
        oldest = max(0, self._length + 1 - self.window)
        if n > 1 or self.padding is None or self._max_padding <= oldest:
            return None
        held = ring_slots(self._length + 1, self.window, self.device)[: min(self._length + 1, self.window)]
        return ((held >= self.padding[:, None]) | (held == self._length))[:, None, None]

    # A chunk of tokens

    def _attend_chunk(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        first, keys, values = self._with_past(layer, k, v)
        self._keep_newest(layer, k, v)
        parts = []
        for begin, end, lowest in self._blocks(q.shape[2]):
            seen = slice(lowest - first, self._length + end - first)
            part, mask = keys[:, :, seen], self._chunk_mask(begin, end, lowest)
            parts.append(kernels.attention(q[:, :, begin:end], part, values[:, :, seen], mask=mask))
        if self.observer is not None:
            self._show_chunk(self.observer, layer, q, first, keys)
        return torch.cat(parts, dim=2)

    def _show_chunk(self, observer: Observer, layer: int, q: Tensor, first: int, keys: Tensor) -> None:
        mask = self._chunk_mask(0, self._new, first)
        held = torch.arange(first, first + keys.shape[2], device=self.device)
        observer(layer, lambda: reference.attention_weights(q, keys, mask), held)

    def _with_past(self, layer: int, k: Tensor, v: Tensor) -> tuple[int, Tensor, Tensor]:
        """(position of the first key, keys, values): what the chunk may see, in the order of positions."""
        past = min(self._length, self.window - 1)
        entries = torch.arange(self._length - past, self._length, device=self.device) % self.window
        held = self._recent(layer)[:, :, :, entries]
        return self._length - past, torch.cat([held[0], k], dim=2), torch.cat([held[1], v], dim=2)

    def _recent(self, layer: int) -> Tensor:
        """The rolling part of a layer's store."""
        return self.store[layer]

    def _blocks(self, n: int) -> Iterator[tuple[int, int, int]]:
        """(first query, behind the last, lowest position they see), queries counted within the chunk."""
        for begin in range(0, n, BLOCK):
            yield begin, min(begin + BLOCK, n), max(0, self._length + begin - self.window + 1)

    def _chunk_mask(self, begin: int, end: int, lowest: int) -> Tensor:
        """(B or 1, 1, n, T) for queries begin..end of the chunk over the keys from `lowest` on."""
        queries = torch.arange(self._length + begin, self._length + end, device=self.device)
        keys = torch.arange(lowest, self._length + end, device=self.device)
        visible = window_mask(queries, keys, self.window)[None, None]
        if self.padding is None:
            return visible
        own = keys == queries[:, None]  # a padding query sees itself, so that its softmax is defined
        return (visible & (keys >= self.padding[:, None, None, None])) | own

    def _keep_newest(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Write at once what overwrites nothing; else at the commit, for a retry needs the old entries."""
        newest = k[:, :, -self.window :], v[:, :, -self.window :]
        if self._length == 0:
            self._write(layer, *newest)
        else:
            self._pending[layer] = tuple(part.clone() for part in newest)

    def _write(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Put the last positions of the step into their entries."""
        end = self._length + self._new
        entries = torch.arange(end - k.shape[2], end, device=self.device) % self.window
        keys, values = self._recent(layer).unbind()
        keys.index_copy_(2, entries, k)
        values.index_copy_(2, entries, v)


def _checked_window(window: int | None, config: ModelConfig) -> int:
    found = config.sliding_window if window is None else window
    if found is None:
        raise ConfigError(
            f"This {config.model_type} model attends to all its {config.max_position_embeddings} positions "
            "and states no sliding window; name one to cut its view all the same, such as window=256."
        )
    if not isinstance(found, int) or found < 1:
        raise ConfigError(f"A window of {found!r} positions: it must be a whole number of at least 1.")
    return found
