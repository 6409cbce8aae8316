"""The least time that a step of a serving engine can take on this machine, by its measured roofs."""

from __future__ import annotations

from copy import copy

from labcore.config import ModelConfig
from labcore.perf.costs import kv_bytes_per_token, step_costs
from labcore.perf.dtypes import format_for
from labcore.perf.peaks import machine_from_roofs
from labcore.perf.roofline import Roofs
from labcore.perf.sizes import weight_bytes
from labcore.serving.events import StepEvent


class Ceiling:
    """Every weight and every cached position that is attended to is read once, at the best bandwidth, or
    every product is computed at the best rate, whichever takes longer; nothing else takes any time.

    dtype: of weights and cache, such as "bfloat16". Raises DeviceError where no rate of it was measured.
    """

    def __init__(self, config: ModelConfig, roofs: Roofs, dtype: str) -> None:
        self.bandwidth = max(roofs.read_bandwidth, roofs.copy_bandwidth)
        self.dtype, self.format = dtype, format_for(dtype, roofs.matmul_flops)  # as it is stored, multiplied
        self.flops = machine_from_roofs(roofs, 0).flops(dtype)
        self.weights = weight_bytes(config, dtype)
        self.position = kv_bytes_per_token(config, dtype)
        one = step_costs(config, 1, 1, dtype=dtype).operations
        self.head = sum(op.flops for op in one if op.name == "lm_head")
        self.token = sum(op.flops for op in one) - self.head
        self.score = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim

    def raised(self, bandwidth: float, flops: float) -> Ceiling:
        """The same at these rates, in bytes/s and FLOP/s."""
        higher = copy(self)
        higher.bandwidth, higher.flops = bandwidth, flops
        return higher

    def seconds(self, event: StepEvent) -> float:
        """Of one step."""
        held = sum(row.start + row.new for row in event.rows)
        scores = sum(row.new * row.start + row.new * (row.new + 1) / 2 for row in event.rows)
        moved = self.weights + self.position * held
        computed = self.token * event.tokens + self.head * event.drawn + self.score * scores
        return max(moved / self.bandwidth, computed / self.flops)
