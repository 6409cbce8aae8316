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
from labcore.perf.dtypes import activation_dtype, bytes_per_element
from labcore.perf.peaks import Machine, as_machine
from labcore.perf.sizes import kv_bytes, kv_bytes_per_token, num_parameters, weight_bytes


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
    """Sequences of `context` tokens whose caches are together as large as the weights: W / kv(t)."""
    if context < 1:
        raise ConfigError(f"A context of {context} tokens holds nothing; it must be at least 1.")
    return weight_bytes(config, dtype) / kv_bytes(config, context, cache_dtype)


def longest_compute_bound_context(
    config: ModelConfig, machine: Machine | GPU, dtype: object = "float16"
) -> float:
    """The context beyond which no batch, however large, makes decode compute-bound. dtype: the weights'.

    With ever more sequences the weights are read for nothing, and of each sequence 2 P + 4 L d t FLOP stand
    against t * kv bytes; they balance at t = 2 P / (ridge * kv - 4 L d). A windowed layer holds and sees no
    more than its window: the others go on from there. Infinite where attention itself lies above the ridge,
    and where all layers are windowed and balance is not reached within the window.
    """
    device, layers = as_machine(machine), config.num_hidden_layers
    ridge = device.ridge(device.product_dtype(dtype))
    per_token = ridge * kv_bytes_per_token(config, activation_dtype(dtype))
    left = per_token - 4 * layers * config.num_attention_heads * config.head_dim
    if left <= 0:
        return float("inf")
    tokens = 2 * num_parameters(config, active=True) / left  # were no layer windowed
    window, windowed = config.sliding_window, config.windowed_layers
    if window is None or tokens <= window:
        return tokens
    beyond = layers * tokens - windowed * window  # positions that the other layers hold between them
    return beyond / (layers - windowed) if windowed < layers else float("inf")


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
