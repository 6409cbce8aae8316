"""`labcore bench cache-quality`: bytes against perplexity and recall of the embedded model, per kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from labcore import quality
from labcore.model import Model

SPECS = (
    "contiguous", "int8", "fp8", "int4", "kivi4", "int2", "kivi2", "offloaded", "paged", "prefix",
    "sliding_window:window=64", "sliding_window:window=128", "sliding_window:window=256",
    "sinks:budget=64", "sinks:budget=128", "sinks:budget=256",
    "heavy_hitters:budget=64", "heavy_hitters:budget=128", "heavy_hitters:budget=256",
    "heavy_hitters:budget=0.2",
)  # fmt: skip


def bench_quality(
    model: Model,
    specs: Sequence[str],
    *,
    stories: int,
    questions: int,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """All specs on the same texts and questions; the first is what the others are held against."""

    def announced() -> Iterator[str]:
        for spec in specs:
            progress(spec)
            yield spec

    found = quality.sweep(model, announced(), stories=stories, questions=questions)
    rows = []
    for one in found:
        row = one.to_dict()
        row.pop("right")
        rows.append(row | {"difference": asdict(quality.difference(one, found[0]))})
    return {
        "model": model.name,
        "stories": stories,
        "questions": found[0].recall.count,
        "tokens": found[0].perplexity.count,
        "positions": found[0].positions,
        "rows": rows,
    }
