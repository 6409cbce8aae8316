"""A model with planted outliers: the same function, but a few channels of its activations are huge.

Large models grow such channels by themselves from a few billion parameters on (Dettmers et al. 2022). Here a
norm's weight is multiplied in some channels and the matrices that read it are divided there: in full
precision nothing changes, and every method meets the difficulty that it was made for.
"""

from __future__ import annotations

from typing import Any

import torch

from labcore.errors import ConfigError


@torch.no_grad()
def plant_outliers(model: Any, *, channels: int = 4, factor: float = 100.0, seed: int = 0) -> list[int]:
    """Make so many channels of every layer's normalised activations `factor` times as large, in place.

    Returns the channels, the same in all layers. Raises ConfigError for a quantized model, a factor that is
    not positive, more channels than there are.
    """
    hidden = model.config.hidden_size
    if model.recipe:
        raise ConfigError(
            f"{model.name!r} is quantized already ({model.recipe}); plant outliers before that."
        )
    if factor <= 0 or not 0 < channels <= hidden:
        raise ConfigError(
            f"{channels} channels times {factor:g} cannot be planted; take 1 to {hidden} channels and a "
            "factor above 0."
        )
    picked = torch.randperm(hidden, generator=torch.Generator().manual_seed(seed))[:channels].sort().values
    for block in model.transformer.layers:
        for norm, linear in (
            (block.input_norm, block.attention.qkv_proj),
            (block.post_norm, block.mlp.gate_up_proj),
        ):
            norm.weight[picked] *= factor
            linear.weight[:, picked] /= factor
    found: list[int] = picked.tolist()
    return found
