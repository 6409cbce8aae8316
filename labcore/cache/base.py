"""The contract between a KV cache and the Transformer.

A step goes: `begin(n)` makes room and says which positions are computed; every layer calls `attend`, which
stores the new keys and values and returns the attention over what is kept; `commit` makes the step count.
Until `commit`, the cache is as it was: a step that fails half way leaves nothing half done.

Sequences of a batch have different lengths by padding on the *left*: all of them end at the same position,
so that a step appends at one place for the whole batch. `padding[b]` first positions of sequence b are never
seen by a real query.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from labcore import kernels
from labcore.config import ModelConfig
from labcore.errors import CacheFull, OutOfMemory
from labcore.kernels import native, reference
from labcore.perf.costs import CacheTraffic, kv_bytes_per_token
from labcore.perf.machine import available_memory, within_budget

NEVER_TOO_BIG = 2**22  # bytes

# For whoever wants to look at the attention: called with the layer, a function that computes its weights
# (B, h, n, T) fp32, and where the T keys stand, (T,) or (B, h_kv, T) int64, -1 for none; None: 0 .. T - 1.
Observer = Callable[[int, Callable[[], Tensor], Tensor | None], None]
Weights = Callable[[], Hashable]  # of a model: see `Transformer.weights`


class KVCache(ABC):
    """Keys and values of a batch of sequences, for all layers."""

    kind: ClassVar[str]
    settings: ClassVar[tuple[str, ...]] = ()  # keyword arguments of this kind beyond the common ones
    endless: ClassVar[bool] = False  # positions may run past the model's context
    rewinds: ClassVar[bool] = True  # truncate gives back exactly what was there before
    observer: Observer | None = None

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        capacity: int,
        device: torch.device,
        dtype: torch.dtype,
        padding: Tensor | None = None,
    ) -> None:
        self.config, self.batch_size, self.device, self.dtype = config, batch_size, device, dtype
        self.padding = padding.to(device) if padding is not None and bool(padding.any()) else None
        self._limit = capacity
        self._length = 0
        self._new = 0
        self.copied_bytes = 0

    # What every kind answers

    @property
    def length(self) -> int:
        """Positions seen per sequence, padding included: the next token stands here."""
        return self._length

    @property
    def kept(self) -> int:
        """Positions still held per sequence; fewer than `length` in kinds that forget."""
        return self._length

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes allocated on the device for keys, values and what describes them, reserved room included."""

    @property
    def host_nbytes(self) -> int:
        """Bytes kept in host memory instead of the device's."""
        return 0

    @property
    def capacity(self) -> int | None:
        """Positions per sequence that fit, or None where nothing is reserved."""
        return None

    @property
    def traffic(self) -> CacheTraffic:
        """How a step's traffic with this kind departs from a contiguous cache's; for `costs.step_costs`."""
        return CacheTraffic()

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k, v (B, h_kv, n, d) behind what is held; return all kept keys and values (B, h_kv, T, d).

        What `attend` is made of. A kind whose attention is not plain attention over T keys overrides that.
        """
        raise NotImplementedError(f"{type(self).__name__} attends by itself")

    @abstractmethod
    def select(self, rows: Tensor) -> None:
        """Continue with these sequences instead: new sequence i is a copy of old sequence rows[i]."""

    def fork(self) -> Self:
        """An independent cache that goes on from the same content. Here a copy; paged kinds share blocks."""
        twin = copy.copy(self)
        twin.observer = None
        for name, value in vars(self).items():
            setattr(twin, name, _copied(value))
        return twin

    def truncate(self, n: int) -> None:
        """Forget everything from position n on.

        Raises ValueError when fewer than n positions were seen, NotSupported where what the position before
        needs is gone.
        """
        if not 0 <= n <= self._length:
            raise ValueError(f"Cannot truncate to {n} positions; the cache holds {self._length}.")
        self._length = n

    def reset(self) -> None:
        """Forget everything; reserved memory stays reserved."""
        self.truncate(0)

    # What a generation tells the cache, for kinds that share between generations

    def adopt(self, tokens: Tensor, weights: Weights | None = None) -> None:  # noqa: B027
        """Called with the prompts (B, p), padding included, before the first step; may fill the cache.

        weights: says whose keys they are, equal for the same tensors with the same values.
        """

    def release(self, tokens: Tensor) -> None:  # noqa: B027
        """Called with all known tokens (B, t) when the generation is over; may keep the blocks for others."""

    # The three calls of the Transformer

    def begin(self, n: int) -> Tensor:
        """Positions (B or 1, n) of the next n tokens. Raises CacheFull, with nothing changed."""
        if self.capacity is not None and self._length + n > self.capacity:
            raise CacheFull(
                f"The {self.kind} cache holds {self._length} of {self.capacity} positions and cannot take "
                f"{n} more; create it with a capacity of at least {self._length + n}."
            )
        self._announce(n)
        slots = torch.arange(self._length, self._length + n, device=self.device)[None]
        return slots if self.padding is None else (slots - self.padding[:, None]).clamp_min(0)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of q (B, h, n, d) over everything kept, the new k and v (B, h_kv, n, d) included."""
        keys, values = self.update(layer, k, v)
        causal = self._mask is None and self._new > 1
        if self.observer is not None:
            mask = self._mask
            self.observer(layer, lambda: reference.attention_weights(q, keys, mask, causal), None)
        return kernels.attention(q, keys, values, mask=self._mask, causal=causal)

    @property
    def packed(self) -> bool:
        """Whether new tokens of one row may come as rows of one token each, as `native_step` then takes
        them."""
        return False

    def native_step(self) -> tuple[native.KVMemory, native.NewTokens] | None:
        """Where the C kernels find keys and values, to do every `attend` of the step that has begun; None
        where this kind attends by itself, or somebody observes."""
        return None

    def commit(self) -> None:
        """Count the positions that `begin` announced as held."""
        self._length += self._new

    # Helpers of the kinds

    def _announce(self, n: int) -> None:
        """A step of n positions begins; what was made for the one before is void."""
        self._new = n
        self.__dict__.pop("_mask", None)

    @cached_property
    def _mask(self) -> Tensor | None:
        """This step's, made where somebody attends by it."""
        slots = torch.arange(self._length, self._length + self._new, device=self.device)[None]
        return self._make_mask(slots, self._new)

    def _make_mask(self, slots: Tensor, n: int) -> Tensor | None:
        """(B or 1, 1, n, T) bool, or None where plain causality or a single query needs no mask."""
        past = self._length
        if self.padding is None and (n == 1 or past == 0):
            return None
        keys = torch.arange(past + n, device=self.device)
        visible = keys <= slots[0, :, None]  # (n, T)
        if self.padding is None:
            return visible[None, None]
        real = keys >= self.padding[:, None, None]  # (B, 1, T)
        own = keys == slots[0, :, None]  # a padding query sees itself, so that its softmax is defined
        return ((visible & real) | own)[:, None]

    def _layer_shape(self, positions: int, batch_size: int | None = None) -> tuple[int, int, int, int]:
        config = self.config
        return (batch_size or self.batch_size, config.num_key_value_heads, positions, config.head_dim)

    def _bytes_for(self, positions: int) -> int:
        return self.batch_size * positions * kv_bytes_per_token(self.config, self.dtype)

    def _refuse_if_too_big(self, needed: int) -> None:
        if needed < NEVER_TOO_BIG and self.device.type == "cpu":
            return  # asking what is free takes longer than a small model's step
        free = available_memory(self.device)
        if needed > free:
            fits = free // max(1, self._bytes_for(1))
            raise OutOfMemory(
                f"A {self.kind} cache of {self._limit} positions x {self.batch_size} sequences needs "
                f"{needed / 1e9:.2f} GB and {free / 1e9:.2f} GB{within_budget(self.device)} are free on "
                f"{self.device}; ask for at most {fits} positions, or for fewer sequences."
            )


def _copied(value: Any) -> Any:
    """Tensors, and tensors in lists, dicts and named tuples, copied; anything else as it is."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, tuple) and hasattr(value, "_make"):
        return value._make(map(_copied, value))
    if isinstance(value, list):
        return [_copied(item) for item in value]
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return value
