"""Talking: what an all-reduce takes by its size, and what a step takes by its number of ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from labcore.config import ModelConfig
from labcore.lab.regimes import talking
from labcore.lab.units import seconds as as_time
from labcore.lab.units import si, significant
from labcore.parallel import AllReduceTime, StepOnRanks, Workers, all_reduce_times, step_times
from labcore.parallel.shard import shard_config
from labcore.perf.costs import kv_bytes_per_token, num_parameters, reduced_bytes, ring_bytes, weight_bytes
from labcore.perf.profile import Profile
from labcore.perf.roofline import Roofs
from labcore.perf.roofline import roofs as measured_roofs

# 94 million parameters, with heads that 2, 4 or 8 ranks can share.
SHAPE = ModelConfig(
    hidden_size=1024, num_hidden_layers=8, num_attention_heads=16, num_key_value_heads=8, head_dim=64,
    intermediate_size=2816, vocab_size=4096, max_position_embeddings=4096,
)  # fmt: skip


@dataclass(frozen=True)
class Talk:
    """Ranks that were asked to work together: all-reduces by size, a profile of one, steps by ranks."""

    reduces: tuple[AllReduceTime, ...]
    steps: tuple[StepOnRanks, ...]
    profile: Profile
    config: ModelConfig

    @property
    def latency_s(self) -> float:
        """What the smallest all-reduce takes: talking at all."""
        return min(one.seconds for one in self.reduces)

    @property
    def bandwidth(self) -> float:
        """The best bus bandwidth over the sizes, bytes/s."""
        return max(one.bus_bandwidth for one in self.reduces)

    def turn(self) -> float:
        """Bytes from which the data outweigh the talking: latency times bandwidth."""
        return self.latency_s * self.bandwidth

    def speedup(self, phase: str = "decode") -> float:
        """Time of a step on one rank over its time on the most."""
        chosen = [step for step in self.steps if (step.new_tokens == 1) == (phase == "decode")]
        return chosen[0].step_s / chosen[-1].step_s

    def rows(self) -> list[dict[str, Any]]:
        """All-reduces by size."""
        return [
            {
                "message": si(one.bytes, "B"),
                "bytes": one.bytes,
                "time (µs)": one.seconds * 1e6,
                "spread, IQR (µs)": one.spread_s * 1e6,
                "bus bandwidth (GB/s)": one.bus_bandwidth / 1e9,
            }
            for one in self.reduces
        ]

    def step_rows(self) -> list[dict[str, Any]]:
        """Steps by ranks."""
        return [
            {
                "step": "decode" if step.new_tokens == 1 else f"prefill of {step.new_tokens}",
                "ranks": step.ranks,
                "time (ms)": step.step_s * 1e3,
                "talking (ms)": step.communication_s * 1e3,
                "talking": f"{step.communication_share:.0%}",
                "collectives": step.calls,
                "put in by each rank": si(step.bytes, "B"),
            }
            for step in self.steps
        ]

    def finding(self) -> str:
        """The two regimes of talking."""
        small, large = self.reduces[0], self.reduces[-1]
        return (
            f"{si(small.bytes, 'B')} take {as_time(small.seconds)}, {si(large.bytes, 'B')} "
            f"{as_time(large.seconds)}: {significant(large.bytes / small.bytes)}× the bytes in "
            f"{significant(large.seconds / small.seconds)}× the time. Below about {si(self.turn(), 'B')} "
            "the wait is for talking at all."
        )

    def step_finding(self) -> str:
        """Whether it was worth it."""
        parts = []
        for phase in ("decode", "prefill"):
            step = [s for s in self.steps if (s.new_tokens == 1) == (phase == "decode")][-1]
            parts.append(
                f"{phase}: {significant(self.speedup(phase))}× as fast on {step.ranks} ranks, "
                f"{step.communication_share:.0%} of the step spent talking"
            )
        size = si(num_parameters(self.config), "")
        return f"{size} parameters, as much hardware for each rank: {'; '.join(parts)}."


def talk(
    roofs: Roofs,
    *,
    config: ModelConfig = SHAPE,
    ranks: Sequence[int] = (1, 2),
    prompt: int = 128,
    repeats: int = 7,
) -> Talk:
    """Start workers for each number of ranks, measure, end them.

    Each has a GPU of its own where there are enough, else one thread of the CPU. roofs: of this session's
    device. Raises ParallelError where a rank fails.
    """
    device = "cuda" if torch.cuda.device_count() >= max(ranks) and "cuda" in roofs.device else "cpu"
    if device not in roofs.device:
        roofs = measured_roofs(device)
    steps: list[StepOnRanks] = []
    for count in ranks:
        with Workers(count, device=device, threads=1 if device == "cpu" else None) as workers:
            for context, new in ((64, 1), (prompt, prompt)):
                steps.append(step_times(workers, config, context=context, new_tokens=new, repeats=repeats))
            if count == max(ranks):
                reduces = all_reduce_times(workers, repeats=repeats)
                seen = talking(workers, roofs)
    steps.sort(key=lambda step: (step.new_tokens, step.ranks))
    return Talk(tuple(reduces), tuple(steps), seen, config)


def split_rows(shapes: dict[str, ModelConfig], ranks: Sequence[int] = (1, 2, 4, 8)) -> list[dict[str, Any]]:
    """What a rank holds, and what a decode step of one token has to add up, by the number of ranks."""
    rows = []
    for name, config in shapes.items():
        for count in ranks:
            part = shard_config(config, count)
            rows.append(
                {
                    "model": name,
                    "ranks": count,
                    "KV heads a rank": part.num_key_value_heads,
                    "weights a rank (GB)": round(weight_bytes(part) / 1e9, 2),
                    "cache a token and rank (B)": kv_bytes_per_token(part),
                    "all-reduces a step": 2 * config.num_hidden_layers if count > 1 else 0,
                    "sent by a rank (B)": math.ceil(ring_bytes(reduced_bytes(config, 1), count)),
                }
            )
    return rows
