"""Where keys and values live. One contract (`base.KVCache`), one file per kind."""

from __future__ import annotations

import difflib

import torch
from torch import Tensor

from labcore.cache.base import KVCache
from labcore.cache.contiguous import ContiguousCache
from labcore.cache.growing import GrowingCache
from labcore.cache.none import NoCache
from labcore.config import ModelConfig
from labcore.errors import ConfigError

KINDS: dict[str, type[KVCache]] = {kind.kind: kind for kind in (NoCache, GrowingCache, ContiguousCache)}

__all__ = ["KINDS", "ContiguousCache", "GrowingCache", "KVCache", "NoCache", "create"]


def create(
    kind: str,
    config: ModelConfig,
    *,
    batch_size: int = 1,
    capacity: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    padding: Tensor | None = None,
) -> KVCache:
    """Make an empty cache.

    capacity: positions per sequence for the kinds that reserve them (default: the model's whole context).
    padding: (batch_size,) int64, how many positions at the start of each sequence are padding.
    Raises ConfigError for an unknown kind, OutOfMemory before a reservation that would not fit.
    """
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"There is no cache kind {kind!r}; choose one of {', '.join(KINDS)}.{hint}")
    limit = capacity or config.max_position_embeddings
    return KINDS[kind](config, batch_size, limit, torch.device(device), dtype, padding)
