"""Rotary position embedding: which angle each pair of a head's numbers is turned by at each position."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from labcore.config import ModelConfig, RopeScaling


class Rope(nn.Module):
    """Cosines and sines for any positions (Su et al. 2021), computed once a step and shared by all layers."""

    signed_freq: Tensor  # (head_dim,): minus the frequencies, then the frequencies

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.reset()

    def reset(self, device: torch.device | str | None = None) -> None:
        """(Re)compute the frequencies; needed after a model was made on the meta device."""
        half = inverse_frequencies(self.config)
        self.register_buffer("signed_freq", torch.cat([-half, half]).to(device=device), persistent=False)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """positions (B or 1, n) -> cos, sin (B or 1, 1, n, head_dim); `sin` is minus in its first half.

        The sign is in the frequencies: cos(-a) = cos(a), sin(-a) = -sin(a).
        """
        angles = positions.view(-1, 1, positions.shape[1], 1) * self.signed_freq
        return angles.cos().to(dtype), angles.sin().to(dtype)


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
