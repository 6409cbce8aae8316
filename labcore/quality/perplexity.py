"""How surprised the model is by held-out stories, each token predicted from what the cache has kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F

from labcore.cache import CacheChoice
from labcore.model import Model
from labcore.quality.feeding import Feed, batches, encode

FIRST = 16  # tokens of each story that are fed at once and not scored


def story_losses(
    model: Model,
    cache: CacheChoice,
    texts: Sequence[str],
    tick: Callable[[], None] = lambda: None,
) -> tuple[list[float], list[int]]:
    """Negative log-likelihoods of each text, summed, and how many tokens they are of.

    The texts of a batch end together, so the first part that is fed at once is FIRST tokens of the shortest,
    and more of the others; the same tokens are scored whatever the cache. Texts of FIRST tokens or fewer are
    left out. tick: called after every batch.
    """
    (eos,) = model.config.eos_token_ids
    rows = [ids for text in texts if len(ids := [*encode(model, text), eos]) > FIRST]
    losses, counts = [0.0] * len(rows), [0] * len(rows)
    for picked in batches(rows):
        feed = Feed(model, [rows[index] for index in picked], cache)
        first = int(feed.padding.max()) + FIRST
        for end, logits in feed.through(first):
            if end == feed.tokens.shape[1]:
                break
            step = F.cross_entropy(logits, feed.tokens[:, end], reduction="none").tolist()
            for index, loss in zip(picked, step, strict=True):
                losses[index] += loss
                counts[index] += 1
        tick()
    return losses, counts
