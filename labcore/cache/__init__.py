"""Where keys and values live. One contract (`base.KVCache`), one file per kind."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from labcore.cache.base import KVCache
from labcore.cache.contiguous import ContiguousCache
from labcore.cache.growing import GrowingCache
from labcore.cache.heavy_hitters import HeavyHittersCache
from labcore.cache.none import NoCache
from labcore.cache.offloaded import OffloadedCache
from labcore.cache.paged import BlockStore, PagedCache
from labcore.cache.prefix import PrefixCache, PrefixStore
from labcore.cache.quantized import QuantizedCache
from labcore.cache.sinks import SinksCache
from labcore.cache.sliding_window import SlidingWindowCache
from labcore.cache.spec import ALIASES, CacheSpec
from labcore.config import ModelConfig
from labcore.errors import ConfigError
from labcore.perf.costs import CacheTraffic

KINDS: dict[str, type[KVCache]] = {
    kind.kind: kind
    for kind in (
        NoCache,
        GrowingCache,
        ContiguousCache,
        SlidingWindowCache,
        SinksCache,
        HeavyHittersCache,
        QuantizedCache,
        OffloadedCache,
        PagedCache,
        PrefixCache,
    )
}

__all__ = [
    "KINDS",
    "BlockStore",
    "CacheChoice",
    "CacheFactory",
    "CacheSpec",
    "ContiguousCache",
    "GrowingCache",
    "HeavyHittersCache",
    "KVCache",
    "NoCache",
    "OffloadedCache",
    "PagedCache",
    "PrefixCache",
    "PrefixStore",
    "QuantizedCache",
    "SinksCache",
    "SlidingWindowCache",
    "create",
    "is_endless",
    "traffic_of",
]


class CacheFactory(Protocol):
    """Whatever makes caches, such as a PrefixStore that its caches share blocks through."""

    def __call__(
        self,
        config: ModelConfig,
        *,
        batch_size: int,
        capacity: int | None,
        device: torch.device | str,
        dtype: torch.dtype,
        padding: Tensor | None,
    ) -> KVCache:
        """An empty cache, or one that fills itself in `adopt`."""


CacheChoice = str | CacheSpec | CacheFactory


def create(
    kind: CacheChoice,
    config: ModelConfig,
    *,
    batch_size: int = 1,
    capacity: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    padding: Tensor | None = None,
    **settings: Any,
) -> KVCache:
    """Make an empty cache.

    kind: a name, a name with settings ("sliding_window:window=64"), a CacheSpec, or a factory.
    capacity: positions per sequence for the kinds that reserve them (default: the model's whole context).
    padding: (batch_size,) int64, how many positions at the start of each sequence are padding.
    settings: the kind's own, over those that `kind` brings.
    Raises ConfigError for an unknown kind or setting, OutOfMemory before a reservation that would not fit.
    """
    limit = capacity or config.max_position_embeddings
    common: dict[str, Any] = {
        "batch_size": batch_size,
        "capacity": limit,
        "device": torch.device(device),
        "dtype": dtype,
    }
    if not isinstance(kind, str | CacheSpec):
        return kind(config, padding=padding, **common)
    spec = CacheSpec.parse(kind) if isinstance(kind, str) else kind
    chosen = {**spec.settings, **settings}
    made = _kind(spec.kind)
    for name in chosen:
        if name not in made.settings:
            raise ConfigError(f"The {spec.kind} cache has no setting {name!r}; {_known(made.settings)}.")
    return made(config, padding=padding, **common, **chosen)


def traffic_of(kind: CacheChoice, config: ModelConfig) -> CacheTraffic:
    """How steps with this choice of cache read and write, for `costs.step_costs`; asks a small one."""
    return create(kind, config, capacity=256).traffic


def is_endless(kind: CacheChoice) -> bool:
    """Whether this choice can go on past the model's context."""
    if isinstance(kind, str | CacheSpec):
        spec = CacheSpec.parse(kind) if isinstance(kind, str) else kind
        return _kind(spec.kind).endless
    return bool(getattr(kind, "endless", False))


def _kind(name: str) -> type[KVCache]:
    if name in KINDS:
        return KINDS[name]
    names = [*KINDS, *ALIASES]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"There is no cache kind {name!r}; choose one of {', '.join(names)}.{hint}")


def _known(names: Iterable[str]) -> str:
    listed = ", ".join(names)
    return f"it has {listed}" if listed else "it has none"
