"""One model on several processes: tensor parallelism over `torch.distributed`, and what it costs to talk.

with Workers(ranks=2) as workers:                 processes that die with this one
    all_reduce_times(workers, sizes)              seconds by message size
    step_times(workers, "shape:smollm2-135m")     a step's time, and the share of it spent talking
shard(model)                                      this rank's part of a model, in a process group

torchrun --nproc-per-node 2 -m labcore.parallel --model story --prompt "Tom has a red"
"""

from __future__ import annotations

from labcore.parallel.measure import (
    AllReduceTime,
    StepOnRanks,
    all_reduce_times,
    logits_on_ranks,
    step_times,
)
from labcore.parallel.shard import shard
from labcore.parallel.workers import Workers

__all__ = [
    "AllReduceTime",
    "StepOnRanks",
    "Workers",
    "all_reduce_times",
    "logits_on_ranks",
    "shard",
    "step_times",
]
