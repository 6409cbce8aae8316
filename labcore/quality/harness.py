"""One call: what a cache costs in bytes and in quality."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tqdm import tqdm

from labcore.cache import CacheChoice, CacheSpec, create
from labcore.model import Model
from labcore.quality import heldout
from labcore.quality.feeding import BATCH
from labcore.quality.intervals import Estimate, paired_share, perplexity, share
from labcore.quality.perplexity import story_losses
from labcore.quality.recall import recalled

POSITIONS = 512  # length of the sequence that bytes are stated for: what the embedded model was trained on


@dataclass(frozen=True)
class Quality:
    """One cache. nbytes, host_nbytes, kept: of one sequence of `positions`.

    right: every question's result, in the order of the questions, so that two caches can be compared in
    pairs.
    """

    cache: str
    perplexity: Estimate
    recall: Estimate
    by_distance: dict[str, Estimate]
    nbytes: int
    host_nbytes: int
    kept: int
    positions: int
    right: tuple[bool, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def evaluate(
    model: Model,
    cache: CacheChoice = "contiguous",
    *,
    stories: int | None = 32,
    questions: int | None = 96,
    kinds: Sequence[str] = heldout.SURE_KINDS,
    seed: int = 0,
    progress: bool = True,
) -> Quality:
    """Perplexity on so many held-out stories and recall on so many questions (None: all), under this cache.

    kinds: of questions. Raises PromptError for a model without a tokenizer, ConfigError for a wrong cache.
    """
    texts, items = heldout.stories(stories, seed), heldout.questions(questions, seed, kinds)
    total = -(-len(texts) // BATCH) + -(-len(items) // BATCH)
    with tqdm(total=total, desc=_label(cache), leave=False, disable=not progress) as bar:
        losses, counts = story_losses(model, cache, texts, bar.update)
        right = recalled(model, cache, items, bar.update)
    ranges = [heldout.distance_range(item["distance"]) for item in items]
    by_distance = {
        name: share([ok for ok, where in zip(right, ranges, strict=True) if where == name])
        for name in dict.fromkeys(ranges)
    }
    nbytes, host, kept = footprint(model, cache)
    return Quality(
        cache=_label(cache),
        perplexity=perplexity(losses, counts),
        recall=share(right),
        by_distance=by_distance,
        nbytes=nbytes,
        host_nbytes=host,
        kept=kept,
        positions=POSITIONS,
        right=tuple(right),
    )


def sweep(model: Model, caches: Iterable[CacheChoice], **settings: Any) -> list[Quality]:
    """`evaluate` for each, on the same texts and questions; for a sweep of budgets name each budget."""
    return [evaluate(model, cache, **settings) for cache in caches]


def difference(one: Quality, other: Quality) -> Estimate:
    """Recall of `one` less that of `other`, over the same questions, with the interval of the difference."""
    return paired_share(one.right, other.right)


@torch.inference_mode()
def footprint(model: Model, cache: CacheChoice, positions: int = POSITIONS) -> tuple[int, int, int]:
    """(device bytes, host bytes, positions kept) of one sequence of `positions` that was read and is full."""
    made = create(cache, model.config, capacity=positions, device=model.device, dtype=model.dtype)
    tokens = torch.zeros(1, positions, dtype=torch.int64, device=model.device)
    model.transformer(tokens, made, logits_to_keep=1)
    return made.nbytes, made.host_nbytes, made.kept


def _label(cache: CacheChoice) -> str:
    if isinstance(cache, str):
        return CacheSpec.parse(cache).label
    return cache.label if isinstance(cache, CacheSpec) else type(cache).__name__
