"""Which layers bear few bits badly: one of them quantized at a time, all others in full precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from labcore.errors import ConfigError
from labcore.model import Model
from labcore.quality import heldout
from labcore.quality.weights import divergences
from labcore.quant.formats import Format, fake
from labcore.quant.quantizing import all_or_nothing, relative_error


@dataclass(frozen=True)
class Sensitivity:
    """One linear layer rounded to nearest. divergence: KL in nats a token; weight_error: relative."""

    name: str
    divergence: float
    weight_error: float


def sensitivity_scan(
    model: Model, full: Model, fmt: Format, *, stories: int = 8, seed: int = 0
) -> list[Sensitivity]:
    """Every linear layer of `model` in turn, which is left as it was. full: the same weights, loaded apart.

    Raises ConfigError for a model that is quantized, or groups that do not divide.
    """
    if model.recipe:
        raise ConfigError(
            f"{model.name!r} is quantized already ({model.recipe}); scan the one it was made from."
        )
    texts = heldout.stories(stories, seed)
    linears = {name: m for name, m in model.transformer.named_modules() if isinstance(m, nn.Linear)}
    return [_one(model, full, name, linear, fmt, texts) for name, linear in linears.items()]


def _one(
    model: Model, full: Model, name: str, linear: nn.Linear, fmt: Format, texts: list[str]
) -> Sensitivity:
    rounded = fake(linear.weight.detach(), fmt)
    other = nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
    other.weight, other.bias = nn.Parameter(rounded, requires_grad=False), linear.bias
    with all_or_nothing() as swap:
        swap.put(model.transformer, name, other)
        _, counts, gaps = divergences(model, full, texts)
        swap.undo()
    with torch.inference_mode():
        error = relative_error(rounded, linear.weight)
    return Sensitivity(name, sum(gaps) / sum(counts), error)
