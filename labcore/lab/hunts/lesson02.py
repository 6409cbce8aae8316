"""Hunts of lesson 2: sampling in the wrong order, and positions off by one in decode.

`begin` is KVCache's method under a plain name; the names its code uses stand in this module, so that a copy
of it runs here as it does at home.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from labcore.cache import ContiguousCache, KVCache
from labcore.errors import CacheFull
from labcore.generation import SamplingParams, decode_step, prefill
from labcore.generation.api import logits as all_logits
from labcore.lab.exercises.checking import Verdict
from labcore.lab.exercises.loops import tiny_model
from labcore.lab.hunts.registry import planted

begin = KVCache.begin
__all__ = ["CacheFull", "Tensor", "begin"]


@planted(
    "02.B",
    title="Text that wanders at high temperature, and one that does not",
    target="labcore.generation.sampling:process_logits",
    bug=(
        ("    logits = logits / params.temperature\n", ""),
        (
            "logits < best + math.log(params.min_p), -math.inf)\n    return logits",
            "logits < best + math.log(params.min_p), -math.inf)\n    return logits / params.temperature",
        ),
    ),
    minutes=6,
    hints=(
        "Take logits [2, 1, 0], temperature 2 and top_p 0.9 by hand: which tokens hold 90 %? Then "
        "ask the function.",
        "top-p, top-k and min-p all look at logits. Which logits should they see: the model's, or "
        "those that are drawn from?",
    ),
)
def _check_order(suspect: Callable[..., Any]) -> Verdict:
    """Kept tokens hold at least p of what is drawn from without the cut, and none of them could be spared."""
    stream = torch.Generator().manual_seed(0)
    cases = [(torch.tensor([2.0, 1.0, 0.0]), 2.0, 0.9)]
    cases += [
        (torch.randn(20, generator=stream) * 2, t, p) for t in (0.5, 1.0, 1.5, 3.0) for p in (0.5, 0.8, 0.95)
    ]
    faults = [fault for case in cases if (fault := _nucleus_fault(suspect, *case))]
    total = len(cases)
    if faults:
        return Verdict(
            total - len(faults),
            total,
            f"{total - len(faults)} of {total} cuts hold what they should. {faults[0]}",
        )
    return Verdict(
        total, total, f"{total} of {total} cuts keep the smallest set that reaches top_p at its temperature."
    )


def _nucleus_fault(suspect: Callable[..., Any], logits: Tensor, temperature: float, p: float) -> str:
    uncut = suspect(logits[None], SamplingParams(temperature=temperature))[0].softmax(-1)
    kept = suspect(logits[None], SamplingParams(temperature=temperature, top_p=p))[0] > -torch.inf
    held = float(uncut[kept].sum())
    spare = held - float(uncut[kept].min())
    if held >= p - 1e-5 and spare < p + 1e-5:
        return ""
    shown = [round(value, 2) for value in logits.tolist()[:4]]
    more = " …" if len(logits) > 4 else ""
    wrong = "too few" if held < p else "more than it needs"
    return (
        f"Logits {shown}{more}, temperature {temperature:g}, top_p {p:g}: {int(kept.sum())} of "
        f"{len(logits)} tokens kept, "
        f"which hold {held:.0%} of the probability that is drawn from; for top_p {p:g} that is {wrong}."
    )


@planted(
    "02.A",
    title="The answer that is almost right",
    target="labcore.lab.hunts.lesson02:begin",
    bug=(
        (
            "slots = torch.arange(self._length, self._length + n, device=self.device)[None]",
            "start = self._length + 1 if self._length else 0\n"
            "    slots = torch.arange(start, start + n, device=self.device)[None]",
        ),
    ),
    minutes=6,
    hints=(
        "Print the positions for a prompt of 4 tokens and for the step after it: which number comes "
        "twice, or never?",
        "A cache that holds t positions holds 0 … t - 1. What is the next one's position?",
    ),
)
def _check_positions(suspect: Callable[..., Any]) -> Verdict:
    """Decode behind a cache must give the logits that one pass over everything gives."""
    model = tiny_model()
    cache_type = type("Suspect", (ContiguousCache,), {"begin": suspect})
    lengths = (1, 4, 9)
    faults = [fault for length in lengths if (fault := _position_fault(model, cache_type, length))]
    passed = len(lengths) - len(faults)
    if faults:
        return Verdict(
            passed,
            len(lengths),
            f"{passed} of {len(lengths)} prompts agree with a pass over everything. {faults[0]}",
        )
    return Verdict(
        passed,
        passed,
        f"{passed} of {passed} prompts: decode gives the logits of one pass over everything, within 1e-4.",
    )


def _position_fault(model: Any, cache_type: type[KVCache], length: int) -> str:
    tokens = torch.randint(64, (1, length + 3), generator=torch.Generator().manual_seed(length))
    whole = all_logits(model, tokens)[0]
    cache = cache_type(model.config, 1, 16, torch.device("cpu"), torch.float32)
    seen: list[list[int]] = []
    hook = model.transformer.rope.register_forward_pre_hook(lambda _, args: seen.append(args[0][0].tolist()))
    try:
        steps = [prefill(model, tokens[:, :length], cache)]
        steps += [decode_step(model, tokens[:, :end], cache) for end in (length + 1, length + 2)]
    finally:
        hook.remove()
    worst = max(float((step[0] - whole[length - 1 + i]).abs().max()) for i, step in enumerate(steps))
    if worst < 1e-4:
        return ""
    return (
        f"Prompt of {length}: the prefill was given positions {seen[0]}, the decode steps {seen[1]} "
        f"and {seen[2]}; "
        f"their logits differ by up to {worst:.2g} from a pass over everything."
    )
