"""What `labcore bench kernels` measures: a kernel, its plain twin, and what a call must move and compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from labcore.model import Model
from labcore.perf.machine import last_level_cache_bytes

Result = Tensor | tuple[Tensor, ...]
Call = Callable[[], Result]
Make = Callable[[int], tuple[Call, Call]]  # a kernel and its reference on the i-th set of operands
MOST_SETS = 64
CACHE = 64 << 20  # bytes, where a device does not state its own


@dataclass(frozen=True)
class Sizes:
    """prompt: positions computed at once. context: positions that each of `batch` sequences holds when one
    more is decoded. together: sequences whose layers are computed at once. many: tokens of a quantized
    product that is no longer bound by its weights."""

    prompt: int = 512
    context: int = 512
    batch: int = 16
    together: int = 16
    many: int = 512


@dataclass(frozen=True)
class Case:
    """One kernel on one shape.

    path: what computes here ("torch", "native", "triton", ...). fast, plain: the same computation by the
    kernel and by its reference, once for each set of operands; called in turn, so that no set is still in a
    cache. moved: bytes that a call must read and write; flops: of its products. computes: the number formats
    it may multiply in. recordable: whether `plain` can be recorded as a CUDA graph.
    """

    kernel: str
    shape: str
    path: str
    fast: tuple[Call, ...]
    plain: tuple[Call, ...]
    moved: int
    flops: int
    computes: tuple[str, ...]
    recordable: bool = True


@dataclass(frozen=True)
class LeftOut:
    """What cannot run here, and why."""

    name: str
    reason: str


class Bench:
    """Where cases are made: a model, whose weights and shapes they have, and random operands beside it."""

    def __init__(self, model: Model, sizes: Sizes) -> None:
        self.model, self.sizes, self.config = model, sizes, model.config
        self.device, self.size = model.device, model.dtype.itemsize
        self.dtype = str(model.dtype).removeprefix("torch.")
        self._generator = torch.Generator(model.device).manual_seed(0)

    def normal(self, *shape: int) -> Tensor:
        """Random numbers where the model lies, in its dtype."""
        return torch.randn(*shape, generator=self._generator, device=self.device, dtype=self.model.dtype)

    def angles(self, positions: int) -> tuple[Tensor, Tensor]:
        """cos and sin (1, 1, positions, d) of the first positions."""
        found: tuple[Tensor, Tensor] = self.model.transformer.rope(
            torch.arange(positions, device=self.device)[None], self.model.dtype
        )
        return found

    def case(
        self,
        kernel: str,
        shape: str,
        path: str,
        make: Make,
        *,
        moved: int,
        flops: int = 0,
        computes: tuple[str, ...] = (),
        recordable: bool = True,
        most_sets: int = MOST_SETS,
    ) -> Case:
        """With as many sets of operands as `sets` says, in the model's dtype. computes: further formats."""
        made = [make(number) for number in range(sets(moved, self.device, most_sets))]
        fast, plain = (tuple(calls) for calls in zip(*made, strict=True))
        formats = (self.dtype, *computes)
        return Case(kernel, shape, path, fast, plain, moved, flops, formats, recordable)


def sets(moved: int, device: torch.device, most: int = MOST_SETS) -> int:
    """How many sets of operands outweigh the largest cache twice, as far as `most` allows."""
    return max(1, min(most, -(-2 * cache_bytes(device) // moved)))


def cache_bytes(device: torch.device) -> int:
    """Of the last cache before the memory."""
    if device.type == "cuda":
        return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)) or CACHE
    return last_level_cache_bytes() or CACHE


def difference(found: Result, expected: Result) -> float:
    """The largest deviation, over the largest expected magnitude."""
    mine, theirs = _flat(found), _flat(expected)
    return float((mine - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30))


def _flat(result: Result) -> Tensor:
    parts = (result,) if isinstance(result, Tensor) else result
    return torch.cat([part.reshape(-1).float() for part in parts])
