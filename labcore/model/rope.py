"""Rotary position embedding: which angle each pair of a head's numbers is turned by at each position."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from labcore import kernels
from labcore.config import ModelConfig
from labcore.kernels.rotary import inverse_frequencies


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

    def _apply(self, *args: Any, **kwargs: Any) -> Rope:
        """Moved with the model, but fp32 in any dtype: rounded frequencies are soon off by whole turns."""
        super()._apply(*args, **kwargs)
        if self.signed_freq.dtype != torch.float32:
            self.reset(self.signed_freq.device)
        return self

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """positions (B or 1, n) -> cos, sin (B or 1, 1, n, head_dim); `sin` is minus in its first half.

        The sign is in the frequencies: cos(-a) = cos(a), sin(-a) = -sin(a).
        """
        return kernels.rope_angles(positions, self.signed_freq, dtype)
