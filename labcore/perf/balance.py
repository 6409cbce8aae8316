"""Where the balance between computing and moving bytes tips: ridge, critical batch, memory wall, utilisation.

A `Machine` computes F FLOP/s and moves BW bytes/s. An operation of A FLOP per byte reaches min(F, BW * A)
(Williams, Waterman and Patterson 2009, the roofline model).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from labcore.catalog import GPU
from labcore.config import ModelConfig
from labcore.errors import ConfigError
from labcore.perf.dtypes import bytes_per_element
from labcore.perf.peaks import Machine, as_machine
from labcore.perf.sizes import kv_bytes_per_token, num_parameters, weight_bytes


def attainable(machine: Machine | GPU, intensity: float, dtype: object = "float16") -> float:
    """FLOP/s that an operation of so many FLOP per byte can reach: min(F, BW * A)."""
    if intensity < 0:
        raise ConfigError(f"An intensity of {intensity} FLOP/byte has no meaning; it is at least 0.")
    found = as_machine(machine)
    return min(found.flops(dtype), found.bandwidth * intensity)


def critical_batch(
    machine: Machine | GPU, weight_dtype: object = "float16", compute_dtype: object = "float16"
) -> float:
    """Tokens a step from which a linear layer is bound by arithmetic: ridge * bytes per weight / 2.

    A weight is read once (its bytes) and takes 2 FLOP a token; activations are left out.
    """
    return as_machine(machine).ridge(compute_dtype) * bytes_per_element(weight_dtype) / 2


def balance_batch(
    config: ModelConfig, context: int, dtype: object = "float16", cache_dtype: object = "float16"
) -> float:
    """Sequences of `context` tokens whose caches are together as large as the weights: W / (t * kv)."""
    if context < 1:
        raise ConfigError(f"A context of {context} tokens holds nothing; it must be at least 1.")
    return weight_bytes(config, dtype) / (context * kv_bytes_per_token(config, cache_dtype))


def longest_compute_bound_context(
    config: ModelConfig, machine: Machine | GPU, dtype: object = "float16"
) -> float:
    """The context beyond which no batch, however large, makes decode compute-bound.

    With ever more sequences the weights are read for nothing, and of each sequence 2 P + 4 L d t FLOP stand
    against t * kv bytes; they balance at t = 2 P / (ridge * kv - 4 L d). Infinite where attention itself lies
    above the ridge.
    """
    per_token = as_machine(machine).ridge(dtype) * kv_bytes_per_token(config, dtype)
    width = config.num_attention_heads * config.head_dim
    left = per_token - 4 * config.num_hidden_layers * width
    return 2 * num_parameters(config, active=True) / left if left > 0 else float("inf")


@dataclass(frozen=True)
class Utilisation:
    """Shares of the two roofs that a measured step reached: MBU of bandwidth, MFU of arithmetic."""

    mbu: float
    mfu: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"mbu": self.mbu, "mfu": self.mfu}


def utilisation(
    machine: Machine | GPU,
    seconds: float,
    *,
    bytes_moved: float,
    flops: float = 0.0,
    dtype: object = "float16",
) -> Utilisation:
    """What a step of so many seconds reached. Raises ConfigError for a step without duration."""
    if seconds <= 0:
        raise ConfigError(f"A step of {seconds} s reaches no rate; it must take longer than 0 s.")
    found = as_machine(machine)
    rate = flops / seconds / found.flops(dtype) if flops else 0.0
    return Utilisation(mbu=bytes_moved / seconds / found.bandwidth, mfu=rate)
