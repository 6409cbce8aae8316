"""What quantized weights cost in quality: perplexity, recall, and how far the predictions moved.

Told by definition unless asked otherwise: a fast path may round in its own way, and that is a property of the
path on this machine, not of the method.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F

from labcore.cache import create
from labcore.errors import LabError
from labcore.model import Model
from labcore.quality import heldout
from labcore.quality.feeding import encode
from labcore.quality.intervals import Estimate, mean, paired_mean, paired_share, perplexity, share
from labcore.quality.perplexity import FIRST
from labcore.quality.recall import recalled
from labcore.quant import QuantLinear

Computed = Literal["definition", "fast"]


@dataclass(frozen=True)
class WeightQuality:
    """One model. divergence: KL(full precision || this one), nats a token, over the same texts.

    computed: by the "definition", or by the "fast" paths that serve on this machine. weight_bytes: of the
    whole model. losses: summed negative log-likelihoods by text, counts: the tokens they are of; right: by
    question; so that two models can be compared in pairs.
    """

    recipe: str
    computed: Computed
    weight_bytes: int
    perplexity: Estimate
    divergence: Estimate
    recall: Estimate | None
    losses: tuple[float, ...]
    counts: tuple[int, ...]
    right: tuple[bool, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def weight_quality(
    model: Model,
    full: Model,
    *,
    stories: int | None = 32,
    questions: int | None = 96,
    seed: int = 0,
    fast: bool = False,
) -> WeightQuality:
    """Hold a quantized model against the one that it was made from, on held-out stories and questions.

    questions: 0 asks none. Texts are read whole; a cache is not part of this. fast: as the model is served,
    with the rounding of its fast paths, instead of by definition; either way the model is left as it was.
    """
    texts = heldout.stories(stories, seed)
    asked = questions is None or questions > 0
    with computing(model, fast=fast):
        losses, counts, gaps = divergences(model, full, texts)
        right = recalled(model, "contiguous", heldout.questions(questions, seed)) if asked else []
    return WeightQuality(
        recipe=model.recipe or "full precision",
        computed="fast" if fast else "definition",
        weight_bytes=model.weight_bytes,
        perplexity=perplexity(losses, counts),
        divergence=mean(gaps, counts),
        recall=share(right) if asked else None,
        losses=tuple(losses),
        counts=tuple(counts),
        right=tuple(right),
    )


def perplexity_change(one: WeightQuality, other: WeightQuality) -> Estimate:
    """Perplexity of `one` over that of `other`, less 1: exp(difference of mean losses) - 1, text by text.

    Raises LabError for two that did not read the same texts.
    """
    if one.counts != other.counts:
        raise LabError(
            f"{one.recipe} was measured on {len(one.counts)} stories of {sum(one.counts)} tokens and "
            f"{other.recipe} on {len(other.counts)} of {sum(other.counts)}; measure both on the same stories."
        )
    gap = paired_mean(one.losses, other.losses, one.counts)
    return Estimate(math.expm1(gap.value), math.expm1(gap.low), math.expm1(gap.high), gap.count)


def recall_change(one: WeightQuality, other: WeightQuality) -> Estimate | None:
    """Recall of `one` less that of `other`, question by question; None where none were asked.

    Raises LabError for two that were not asked the same number.
    """
    if len(one.right) != len(other.right):
        raise LabError(
            f"{one.recipe} was asked {len(one.right)} questions and {other.recipe} {len(other.right)}; "
            "ask both the same."
        )
    return paired_share(one.right, other.right) if one.right else None


@contextmanager
def computing(model: Model, *, fast: bool) -> Iterator[None]:
    """The model by its fast paths, or by definition; afterwards every layer as it was, errors or not."""
    transformer = model.transformer
    layers = [module for module in transformer.modules() if isinstance(module, QuantLinear)]
    whole, each = transformer.fast, [layer.fast for layer in layers]
    transformer.fast = fast
    try:
        yield
    finally:
        transformer.fast = whole  # sets every layer alike; some may have differed
        for layer, before in zip(layers, each, strict=True):
            layer.fast = before


@torch.inference_mode()
def divergences(
    model: Model, full: Model, texts: Sequence[str]
) -> tuple[list[float], list[int], list[float]]:
    """By text: summed losses, tokens, summed KL. The first FIRST tokens are not scored."""
    losses, counts, gaps = [], [], []
    for text in texts:
        ids = encode(model, text)
        if len(ids) <= FIRST:
            continue
        found, wanted = (_log_probabilities(one, ids) for one in (model, full))
        target = torch.tensor(ids[FIRST:], device=model.device)
        losses.append(float(F.nll_loss(found, target, reduction="sum")))
        counts.append(len(target))
        gaps.append(float(F.kl_div(found, wanted, reduction="sum", log_target=True)))
    return losses, counts, gaps


def _log_probabilities(model: Model, ids: list[int]) -> torch.Tensor:
    """(scored tokens, vocab): what is foretold for each scored token."""
    cache = create("none", model.config, capacity=len(ids), device=model.device, dtype=model.dtype)
    logits = model.transformer(torch.tensor([ids], device=model.device), cache)
    return logits[0, FIRST - 1 : -1].float().log_softmax(-1)
