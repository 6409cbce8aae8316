"""The held-out stories and questions that come with the embedded model."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from typing import Any

from labcore.catalog import data_dir
from labcore.errors import LabError

# Questions that the embedded model answers nearly always when it sees the whole story.
SURE_KINDS = ("colour", "number", "name")
# Upper ends of the distance ranges, in tokens from the fact to the answer.
DISTANCES = (64, 128, 256, 512)


@cache
def _items() -> list[dict[str, Any]]:
    path = data_dir() / "story" / "heldout.jsonl"
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise LabError(f"The held-out set {path} cannot be read ({error}); restore the file.") from None


def stories(count: int | None = None, seed: int = 0) -> list[str]:
    """Texts for perplexity; fewer than all are drawn by the seed."""
    texts = [item["text"] for item in _items() if item["type"] == "story"]
    return texts if count is None else random.Random(seed).sample(texts, min(count, len(texts)))


def questions(
    count: int | None = None, seed: int = 0, kinds: Sequence[str] = SURE_KINDS
) -> list[dict[str, Any]]:
    """Recall items, equally many from each distance range; fewer than all are drawn by the seed."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for item in _items():
        if item["type"] == "recall" and item["kind"] in kinds:
            found[distance_range(item["distance"])].append(item)
    if not found:
        raise LabError(f"The held-out set has no questions of the kinds {', '.join(kinds)}.")
    if count is None:
        return [item for group in found.values() for item in group]
    stream, each = random.Random(seed), -(-count // len(found))
    return [item for group in found.values() for item in stream.sample(group, min(each, len(group)))][:count]


def distance_range(distance: int) -> str:
    """The range a distance lies in, as "65-128"."""
    lows = (0, *DISTANCES)
    for low, high in zip(lows, DISTANCES, strict=False):
        if distance <= high:
            return f"{low + 1}-{high}"
    return f"{DISTANCES[-1] + 1}+"
