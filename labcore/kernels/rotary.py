"""Rotary frequencies, and turning vectors on by some positions (Su et al. 2021, RoFormer)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from labcore.config import ModelConfig, RopeScaling


def rotate_by(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    """Turn rotated vectors on by `positions` more (or back, where negative).

    x: (..., d), pairs (i, i + d/2). positions: broadcast to x's shape without d. frequencies: (d/2,).
    Rotations add up: what was rotated for position p is then what position p + positions would have given.
    """
    angles = positions[..., None].float() * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def inverse_frequencies(config: ModelConfig) -> Tensor:
    """(head_dim / 2,) fp32 radians per position, scaled as the configuration says."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu") / config.head_dim
    plain = 1.0 / config.rope_theta**exponents
    scaling = config.rope_scaling
    if scaling.kind == "linear":
        return plain / scaling.factor
    return _llama3(plain, scaling) if scaling.kind == "llama3" else plain


def _llama3(plain: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1: slow pairs are slowed by `factor`, fast ones kept, those between blended."""
    wavelength = 2 * math.pi / plain
    turns = scaling.original_max_position_embeddings / wavelength
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return plain / scaling.factor * (1 - kept) + plain * kept
