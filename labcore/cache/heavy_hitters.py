"""Heavy hitters: of a fixed budget, half for the newest positions, half for those that were attended to
most (H2O).

Zhang et al. 2023: a few positions collect most of the attention. Each KV head of each layer adds up the
attention that its queries have paid to every position it holds, and when the budget is spent it drops the
position with the smallest sum among those that are not recent. Keys keep their true positions.

A prompt is attended in full, then cut to the budget, as in the paper; after that one position goes for
each that comes. Every store has one entry more than the budget: the newcomer is attended to before anyone
leaves.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from labcore.cache.base import KVCache
from labcore.errors import ConfigError, NotSupported
from labcore.kernels.grouped import grouped_scores, grouped_values
from labcore.perf.costs import CacheTraffic

# Queries of a prompt are attended in blocks, so that their weights stay small.
BLOCK = 256


class _Held(NamedTuple):
    """One layer. keys, values: (B, h_kv, entries, d); slots (int64, -1: empty), sums: (B, h_kv, entries)."""

    keys: Tensor
    values: Tensor
    slots: Tensor
    sums: Tensor


class HeavyHittersCache(KVCache):
    """budget: positions kept, a number or a share of the capacity. recent: the share of it for the newest.

    A share is of each sequence's own capacity, which its padding is no part of: a row keeps as much as it
    would alone. `budget` is the largest of the rows' `budgets`, (B,); `recents`, (B,): of these, the newest.
    """

    kind: ClassVar[str] = "heavy_hitters"
    rewinds: ClassVar[bool] = False
    settings: ClassVar[tuple[str, ...]] = ("budget", "recent")

    def __init__(self, *args: Any, budget: int | float = 0.2, recent: float = 0.5, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        shares = [_shares(budget, recent, capacity) for capacity in self._own_capacities()]
        self.budgets, self.recents = torch.tensor(shares, device=self.device).unbind(1)
        self.budget = max(kept for kept, _ in shares)
        self._refuse_if_too_big(self._bytes_for(self.budget + 1))
        self.held = [self._empty() for _ in range(self.config.num_hidden_layers)]
        self._next: dict[int, _Held] = {}

    def _own_capacities(self) -> list[int]:
        """Positions that each sequence may reach, padding left out.

        In a batch the shorter ones may go on where the longest has come to the end of the model's context,
        and then the capacity is more than any sequence has; the last token of a context is never fed.
        """
        if self.padding is None:
            return [self._limit] * self.batch_size
        most = self.config.max_position_embeddings - 1
        return [min(self._limit - pad, most) for pad in self.padding.tolist()]

    def _empty(self) -> _Held:
        shape = self._layer_shape(self.budget + 1)
        keys, values = (torch.zeros(shape, device=self.device, dtype=self.dtype) for _ in range(2))
        slots = torch.full(shape[:3], -1, dtype=torch.int64, device=self.device)
        return _Held(keys, values, slots, torch.zeros(shape[:3], device=self.device, dtype=torch.float32))

    @property
    def traffic(self) -> CacheTraffic:
        """A query sees the budget and itself; every position keeps its sum of attention."""
        return CacheTraffic(kept=self.budget + 1, scores=True)

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values, and of what is known of each: its position and its sum of attention."""
        return sum(tensor.nbytes for held in self.held for tensor in held)

    @property
    def capacity(self) -> int:
        """Positions a sequence may reach; the budget is what is kept of them."""
        return self._limit

    @property
    def kept(self) -> int:
        """The largest budget at most."""
        return min(self._length, self.budget)

    def begin(self, n: int) -> Tensor:
        """As in the contract. What an interrupted step left behind is forgotten."""
        self._next.clear()
        return super().begin(n)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention over what this layer holds and over the new positions; then who stays is decided."""
        all_ = self._with_new(self.held[layer], k, v)
        parts, seen = [], []
        for begin in range(0, q.shape[2], BLOCK):
            part = q[:, :, begin : begin + BLOCK]
            mask = self._visible(all_.slots, begin, part.shape[2])
            weights = grouped_scores(part, all_.keys).masked_fill(~mask, -math.inf).softmax(-1)
            seen.append(weights)
            parts.append(grouped_values(weights, all_.values))
            all_.sums.add_((weights * self._real_queries(begin, part.shape[2])).sum((2, 3)))
            if self.observer is None:
                seen.clear()
        if self.observer is not None:
            self.observer(layer, lambda: torch.cat(seen, dim=3).flatten(1, 2), all_.slots)
        self._next[layer] = self._cut(all_)
        return torch.cat(parts, dim=2)

    def commit(self) -> None:
        """Let the step's decisions count."""
        for layer, held in self._next.items():
            self.held[layer] = held
        self._next.clear()
        super().commit()

    def truncate(self, n: int) -> None:
        """Only to nothing, or to where it is: who was kept was decided by all that has been seen."""
        if n not in (0, self._length):
            raise NotSupported(
                f"The heavy_hitters cache cannot go back from {self._length} to {n} positions: what it "
                "dropped, it dropped for what came later; truncate to 0, or use a contiguous cache."
            )
        super().truncate(n)
        if n == 0:
            for held in self.held:
                held.slots.fill_(-1)
                held.sums.zero_()

    def select(self, rows: Tensor) -> None:
        """Gather the sequences' rows."""
        self.held = [_Held(*(tensor[rows] for tensor in held)) for held in self.held]
        self.padding = self.padding[rows] if self.padding is not None else None
        self.budgets, self.recents = self.budgets[rows], self.recents[rows]
        self.batch_size = len(rows)

    # Parts of a step

    def _with_new(self, held: _Held, k: Tensor, v: Tensor) -> _Held:
        """What is held and the new positions. A single newcomer takes an empty entry: nothing is copied."""
        if self._new == 1:
            empty = held.slots.argmin(-1, keepdim=True)
            place = empty[..., None].expand_as(k)
            held.keys.scatter_(2, place, k)
            held.values.scatter_(2, place, v)
            slots = held.slots.scatter(2, empty, self._length)
            return _Held(held.keys, held.values, slots, held.sums.scatter(2, empty, 0.0))
        new = torch.arange(self._length, self._length + self._new, device=self.device)
        new = new.expand(*k.shape[:2], -1)
        return _Held(
            torch.cat([held.keys, k], dim=2),
            torch.cat([held.values, v], dim=2),
            torch.cat([held.slots, new], dim=2),
            torch.cat([held.sums, torch.zeros_like(new, dtype=torch.float32)], dim=2),
        )

    def _visible(self, slots: Tensor, begin: int, n: int) -> Tensor:
        """(B, h_kv, 1, n, entries): held, not padding, not later than the query; a query sees itself."""
        first = self._length + begin
        queries = torch.arange(first, first + n, device=self.device)[:, None]
        held = slots[:, :, None]
        seen = (held >= self._first_real()) & (held <= queries)
        return (seen | (held == queries))[:, :, None]

    def _first_real(self) -> Tensor:
        if self.padding is None:
            return torch.zeros(1, 1, 1, 1, dtype=torch.int64, device=self.device)
        return self.padding[:, None, None, None]

    def _real_queries(self, begin: int, n: int) -> Tensor | float:
        """What a query's attention counts for: nothing where it is padding."""
        if self.padding is None:
            return 1.0
        first = self._length + begin
        queries = torch.arange(first, first + n, device=self.device)[:, None]
        return (queries >= self.padding[:, None, None, None, None]).float()

    def _cut(self, all_: _Held) -> _Held:
        """Leave the budget's worth: the newest, and of the others those with the largest sums."""
        first_recent = (self._length + self._new - self.recents)[:, None, None]
        worth = all_.sums.masked_fill(all_.slots >= first_recent, math.inf)
        lost = all_.slots < self._first_real()[..., 0]  # empty entries and padding
        budgets = self.budgets[:, None, None]
        if self._new == 1:
            # Where the budget is spent somebody real leaves, else an entry that holds nothing.
            spent = (~lost).sum(-1, keepdim=True) > budgets
            worth = torch.where(lost, torch.where(spent, math.inf, -math.inf), worth)
            leaves = worth.argmin(-1, keepdim=True)
            return all_._replace(slots=all_.slots.scatter(2, leaves, -1))
        stay = worth.masked_fill(lost, -math.inf).topk(self.budget, dim=-1)
        gone = (stay.values == -math.inf) | (torch.arange(self.budget, device=self.device) >= budgets)
        rows = stay.indices[..., None].expand(-1, -1, -1, self.config.head_dim)
        slots = all_.slots.gather(2, stay.indices).masked_fill(gone, -1)
        kept = (
            all_.keys.gather(2, rows),
            all_.values.gather(2, rows),
            slots,
            all_.sums.gather(2, stay.indices),
        )
        held = self._empty()
        for entry, tensor in zip(held, kept, strict=True):
            entry[:, :, : self.budget] = tensor
        return held


def _shares(budget: int | float, recent: float, capacity: int) -> tuple[int, int]:
    """(positions kept, of these the newest). Raises ConfigError for shares that mean nothing."""
    if isinstance(budget, bool) or (isinstance(budget, float) and not 0 < budget <= 1):
        raise ConfigError(
            f"A budget of {budget!r}: give a number of positions, or a share of the capacity above 0 and up "
            "to 1.0."
        )
    kept = min(math.ceil(budget * capacity) if isinstance(budget, float) else budget, capacity)
    if kept < 2 <= capacity:
        raise ConfigError(
            f"A budget of {budget} is {kept} of {capacity} positions; heavy hitters need at least 2, "
            "one for the newest and one for the most attended."
        )
    if not 0 < recent <= 1:
        raise ConfigError(f"recent is {recent!r}; it is a share of the budget, above 0 and up to 1.0.")
    return kept, max(1, round(kept * recent))
