"""What quantized weights cost in quality: perplexity, recall, and how far the predictions moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F

from labcore.cache import create
from labcore.model import Model
from labcore.quality import heldout
from labcore.quality.feeding import encode
from labcore.quality.intervals import Estimate, mean, perplexity, share
from labcore.quality.perplexity import FIRST
from labcore.quality.recall import recalled


@dataclass(frozen=True)
class WeightQuality:
    """One model. divergence: KL(full precision || this one), nats a token, over the same texts.

    weight_bytes: of the whole model. losses: summed negative log-likelihoods by text; right: by question; so
    that two models can be compared in pairs.
    """

    recipe: str
    weight_bytes: int
    perplexity: Estimate
    divergence: Estimate
    recall: Estimate | None
    losses: tuple[float, ...]
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
) -> WeightQuality:
    """Hold a quantized model against the one that it was made from, on held-out stories and questions.

    questions: 0 asks none. Texts are read whole; a cache is not part of this.
    """
    texts = heldout.stories(stories, seed)
    losses, counts, gaps = divergences(model, full, texts)
    asked = questions is None or questions > 0
    right = recalled(model, "contiguous", heldout.questions(questions, seed)) if asked else []
    return WeightQuality(
        recipe=model.recipe or "full precision",
        weight_bytes=model.weight_bytes,
        perplexity=perplexity(losses, counts),
        divergence=mean(gaps, counts),
        recall=share(right) if asked else None,
        losses=tuple(losses),
        right=tuple(right),
    )


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
