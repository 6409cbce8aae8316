"""Attention sinks: the first few positions for ever, and a rolling window of the newest (StreamingLLM).

Xiao et al. 2024: models put much of their attention on the first tokens, whatever these say; drop them
and the text falls apart, keep four and it goes on without end. Positions are counted *within the cache*:
with s sinks and a window of w, the newest token always stands at s + w - 1, however long the text has
become.

Attention sees only distances, and those between window and query are the true ones anyway. So only the
sinks have to move: at each step their keys are turned on by as much as the query has outrun the cache
(for a chunk, where every query has outrun it by another amount, the queries are turned back instead).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from labcore import kernels
from labcore.cache.sliding_window import SlidingWindowCache, ring_slots
from labcore.errors import ConfigError
from labcore.kernels import reference
from labcore.kernels.grouped import grouped_scores, grouped_values
from labcore.kernels.rotary import inverse_frequencies, rotate_by
from labcore.perf.costs import CacheTraffic


class SinksCache(SlidingWindowCache):
    """The store's first entries hold the sinks, turned for the newest query; behind them rolls the window.

    sinks: first positions kept. window: newest positions kept, the query's own included. budget: both
    together, instead of window.
    """

    kind: ClassVar[str] = "sinks"
    settings: ClassVar[tuple[str, ...]] = ("sinks", "window", "budget")

    def __init__(
        self, *args: Any, sinks: int = 4, window: int | None = None, budget: int | None = None, **kwargs: Any
    ) -> None:
        self.sinks = _checked_sinks(sinks)
        super().__init__(*args, window=_window_of(sinks, window, budget), **kwargs)

    def _allocate(self, entries: int) -> None:
        super()._allocate(self.sinks + entries)
        self._frequencies = inverse_frequencies(self.config).to(self.device)
        shape, layers = self._layer_shape(self.sinks), range(self.config.num_hidden_layers)
        # Keys of the sinks as they were computed: turning what was turned would add up rounding errors.
        self.sink_keys = [torch.zeros(shape, device=self.device, dtype=self.dtype) for _ in layers]

    @property
    def traffic(self) -> CacheTraffic:
        """A query sees the sinks and the window."""
        return CacheTraffic(kept=self.sinks + self.window)

    @property
    def nbytes(self) -> int:
        """Bytes of window and sinks, the sinks' unturned keys included."""
        return super().nbytes + sum(tensor.nbytes for tensor in self.sink_keys)

    @property
    def kept(self) -> int:
        """Sinks and window at most."""
        return min(self._length, self.sinks + self.window)

    def begin(self, n: int) -> Tensor:
        """As in the contract; also how far each query has outrun the cache."""
        positions = super().begin(n)
        slots = torch.arange(self._length, self._length + n, device=self.device)[None]
        self._real = slots if self.padding is None else slots - self.padding[:, None]  # below 0: padding
        self._ahead = (self._real - (self.sinks + self.window - 1)).clamp_min(0)  # (B or 1, n)
        return positions

    def select(self, rows: Tensor) -> None:
        """Gather the sequences' rows."""
        super().select(rows)
        self.sink_keys = [tensor[rows] for tensor in self.sink_keys]

    # One token

    def _attend_one(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        entry = self.sinks + self._length % self.window
        keys, values = self.store[layer].unbind()
        keys[:, :, entry : entry + 1] = k
        values[:, :, entry : entry + 1] = v
        self._written = max(self._written, self._length + 1)
        if self._length - self._max_padding < self.sinks:  # some row's sinks are not all there
            self.sink_keys[layer], values[:, :, : self.sinks] = self._with_new_sinks(layer, k, v)
        keys[:, :, : self.sinks] = rotate_by(
            self.sink_keys[layer], self._ahead[:, :, None], self._frequencies
        )
        mask = self._mask
        if self.observer is not None:
            held = ring_slots(self._length + 1, self.window, self.device)
            stands = torch.cat([self._sink_slots(), held.clamp_min(-1)])
            self.observer(layer, lambda: reference.attention_weights(q, keys, mask), stands)
        return kernels.attention(q, keys, values, mask=mask)

    def _sink_slots(self) -> Tensor:
        """(sinks,): where the first row's sinks stand."""
        start = 0 if self.padding is None else self.padding[0]
        return torch.arange(self.sinks, device=self.device) + start

    def _make_mask(self, slots: Tensor, n: int) -> Tensor | None:
        """For one token: (B or 1, 1, 1, sinks + window), None once every entry is filled and seen."""
        if n > 1 or self._length + 1 >= self.sinks + self.window + self._max_padding:
            return None
        padding = 0 if self.padding is None else self.padding[:, None]
        real = torch.as_tensor(self._length - padding, device=self.device).view(-1, 1)
        sinks = torch.arange(self.sinks, device=self.device) <= real
        held = ring_slots(self._length + 1, self.window, self.device)
        recent = (held - padding >= self.sinks) | ((held == self._length) & (real < 0))
        return torch.cat([sinks, recent.expand(len(sinks), -1)], dim=-1)[:, None, None]

    # A chunk of tokens

    def _recent(self, layer: int) -> Tensor:
        return self.store[layer][:, :, :, self.sinks :]

    def _attend_chunk(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        first, keys, values = self._with_past(layer, k, v)
        sink_keys, sink_values = self._with_new_sinks(layer, k, v)
        self._keep_newest(layer, k, v, sink_keys, sink_values)
        parts = []
        for begin, end, lowest in self._blocks(q.shape[2]):
            seen = slice(lowest - first, self._length + end - first)
            weights = self._chunk_weights(q, sink_keys, keys[:, :, seen], begin, end, lowest)
            parts.append(grouped_values(weights, torch.cat([sink_values, values[:, :, seen]], dim=2)))
        if self.observer is not None:
            held = torch.arange(first, first + keys.shape[2], device=self.device)
            whole = self._chunk_weights(q, sink_keys, keys, 0, q.shape[2], first).flatten(1, 2)
            self.observer(layer, lambda: whole, torch.cat([self._sink_slots(), held]))
        return torch.cat(parts, dim=2)

    def _chunk_weights(
        self, q: Tensor, sink_keys: Tensor, keys: Tensor, begin: int, end: int, lowest: int
    ) -> Tensor:
        """(B, h_kv, h / h_kv, n, sinks + T): queries are turned back to where they stand from the sinks."""
        back = -self._ahead[:, None, begin:end]
        to_sinks = grouped_scores(rotate_by(q[:, :, begin:end], back, self._frequencies), sink_keys)
        to_recent = grouped_scores(q[:, :, begin:end], keys)
        mask = self._chunk_mask(begin, end, lowest)[:, :, None]  # (B or 1, 1, 1, n, sinks + T)
        return torch.cat([to_sinks, to_recent], dim=-1).masked_fill(~mask, -torch.inf).softmax(-1)

    def _chunk_mask(self, begin: int, end: int, lowest: int) -> Tensor:
        """(B or 1, 1, n, sinks + T): the sinks so far, then the window without them."""
        window = super()._chunk_mask(begin, end, lowest)
        real = self._real[:, begin:end, None]  # (B or 1, n, 1)
        sinks = torch.arange(self.sinks, device=self.device) <= real
        keys = torch.arange(lowest, self._length + end, device=self.device)
        keys_real = keys if self.padding is None else (keys - self.padding[:, None])[:, None]
        recent = window & ((keys_real >= self.sinks) | (real < 0))[:, None]
        return torch.cat([sinks[:, None].expand(recent.shape[0], -1, -1, -1), recent], dim=-1)

    def _keep_newest(self, layer: int, k: Tensor, v: Tensor, *sinks: Tensor) -> None:
        super()._keep_newest(layer, k, v)
        if layer in self._pending:
            self._pending[layer] += sinks
        else:
            self._write_sinks(layer, *sinks)

    def _write(self, layer: int, k: Tensor, v: Tensor, *sinks: Tensor) -> None:
        super()._write(layer, k, v)
        if sinks:
            self._write_sinks(layer, *sinks)

    # The sinks

    def _with_new_sinks(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The sinks' unturned keys and their values, those that this step brings included."""
        keys = self.sink_keys[layer].clone()
        values = self.store[layer][1, :, :, : self.sinks].clone()
        if self._length - self._max_padding < self.sinks:
            for sink in range(self.sinks):
                here = self._real == sink  # (B or 1, n): where in the step each row's sink stands
                rows, at = here.any(1)[:, None, None], here.int().argmax(1).expand(self.batch_size)
                batch = torch.arange(self.batch_size, device=self.device)
                keys[:, :, sink] = torch.where(rows, k[batch, :, at], keys[:, :, sink])
                values[:, :, sink] = torch.where(rows, v[batch, :, at], values[:, :, sink])
        return keys, values

    def _write_sinks(self, layer: int, keys: Tensor, values: Tensor) -> None:
        self.sink_keys[layer] = keys
        self.store[layer][1, :, :, : self.sinks] = values


def _checked_sinks(sinks: int) -> int:
    if not isinstance(sinks, int) or sinks < 0:
        raise ConfigError(f"{sinks!r} sinks: it must be a whole number of at least 0.")
    return sinks


def _window_of(sinks: int, window: int | None, budget: int | None) -> int:
    if window is not None and budget is not None and sinks + window != budget:
        raise ConfigError(
            f"A budget of {budget} positions is not {sinks} sinks and a window of {window}; "
            "give one of the two."
        )
    if budget is not None and budget <= sinks:
        raise ConfigError(
            f"A budget of {budget} positions cannot hold {sinks} sinks and a window of at least 1; "
            f"ask for a budget of {sinks + 1} or more, or for fewer sinks."
        )
    if window is None and budget is None:
        raise ConfigError(
            "The sinks cache needs a window (newest positions kept) or a budget (with the sinks)."
        )
    return budget - sinks if budget is not None else window  # type: ignore[return-value]
