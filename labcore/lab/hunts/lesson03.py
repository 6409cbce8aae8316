"""Hunts of lesson 3: keys that are cached at the wrong place, and a cache that remembers the last
conversation.

Both targets are methods under plain names; the names their code uses stand in this module.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from labcore import kernels
from labcore.cache import ContiguousCache, KVCache
from labcore.generation import decode_step, prefill
from labcore.generation.api import logits as all_logits
from labcore.lab.exercises.checking import Verdict, of_faults
from labcore.lab.exercises.loops import tiny_model
from labcore.lab.hunts.registry import planted
from labcore.model.transformer import AttendingCache, Attention

forward, truncate = Attention.forward, KVCache.truncate
__all__ = ["AttendingCache", "Tensor", "forward", "kernels", "truncate"]

LENGTHS = (1, 4, 9)


@planted(
    "03.A",
    title="The answer that forgets where the question was",
    target="labcore.lab.hunts.lesson03:forward",
    bug=(
        (
            "q, k = kernels.apply_rope(self._norm(qk), cos, sin).split((self.heads, self.kv_heads), dim=1)",
            "q, k = self._norm(qk).split((self.heads, self.kv_heads), dim=1)\n"
            "    q = kernels.apply_rope(q, cos, sin)\n"
            "    k = kernels.apply_rope(k, cos.roll(1, 2), sin.roll(1, 2))",
        ),
    ),
    minutes=7,
    hints=(
        "A prompt of one token passes, longer ones do not: what is different with several positions?",
        "A key must be turned by the angles of its own position before it is cached. Print which row of "
        "`cos` each key of a prompt of 4 gets.",
    ),
)
def _check_offset(suspect: Callable[..., Any]) -> Verdict:
    """Prompt and decode steps through the suspect must give the logits of one pass through labcore."""
    faults = [fault for length in LENGTHS if (fault := _offset_fault(suspect, length))]
    return of_faults(faults, len(LENGTHS), "prompts", "keys of prompt and answer stand where they belong")


def _offset_fault(suspect: Callable[..., Any], length: int) -> str:
    model = tiny_model()
    tokens = torch.randint(64, (1, length + 2), generator=torch.Generator().manual_seed(length))
    whole = all_logits(model, tokens)[0]
    for layer in model.transformer.layers:
        layer.attention.forward = MethodType(suspect, layer.attention)  # type: ignore[union-attr]
    model.transformer.fast = False
    cache = ContiguousCache(model.config, 1, 16, torch.device("cpu"), torch.float32)
    steps = [prefill(model, tokens[:, :length], cache)]
    steps += [decode_step(model, tokens[:, :end], cache) for end in (length + 1, length + 2)]
    gaps = [float((step[0] - whole[length - 1 + i]).abs().max()) for i, step in enumerate(steps)]
    if max(gaps) < 1e-4:
        return ""
    told = ", ".join(f"{gap:.2g}" for gap in gaps)
    return (
        f"Prompt of {length}: logits of the prefill and of two decode steps differ from one pass by {told}."
    )


@planted(
    "03.B",
    title="The second user reads the first one's mail",
    target="labcore.lab.hunts.lesson03:truncate",
    bug=(("self._length = n", "self._length -= n"),),
    minutes=5,
    hints=(
        "`reset()` is `truncate(0)`. Print cache.length before and after.",
        "n is how many positions are to be left, not how many are to go.",
    ),
)
def _check_reset(suspect: Callable[..., Any]) -> Verdict:
    """After a reset the second prompt must be answered as if there had been no first."""
    faults = [fault for length in LENGTHS if (fault := _reset_fault(suspect, length))]
    praise = "after a reset nothing of the first prompt is left"
    return of_faults(faults, len(LENGTHS), "pairs of prompts", praise)


def _reset_fault(suspect: Callable[..., Any], length: int) -> str:
    model = tiny_model()
    cache_type = type("Suspect", (ContiguousCache,), {"truncate": suspect})
    cache = cache_type(model.config, 1, 32, torch.device("cpu"), torch.float32)
    stream = torch.Generator().manual_seed(length)
    first, second = (torch.randint(64, (1, length), generator=stream) for _ in range(2))
    prefill(model, first, cache)
    cache.truncate(length - 1)
    kept = cache.length
    cache.reset()
    if kept != length - 1 or cache.length:
        return (
            f"After a prompt of {length}, truncate({length - 1}) left {kept} positions and reset() left "
            f"{cache.length}."
        )
    gap = float((prefill(model, second, cache)[0] - all_logits(model, second)[0, -1]).abs().max())
    return "" if gap < 1e-4 else f"The second prompt's logits differ from a fresh cache's by {gap:.2g}."
