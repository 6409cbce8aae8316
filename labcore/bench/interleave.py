"""Fair timing of contestants on a machine that others may be using too."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Samples(Generic[T]):
    """What each repeat of one contestant returned, in order."""

    results: list[T]

    def median(self, key: Callable[[T], float]) -> float:
        """The middle value of a number read from each result."""
        return statistics.median(map(key, self.results))

    def spread(self, key: Callable[[T], float]) -> float:
        """Interquartile range of a number read from each result; 0 for fewer than two."""
        values = [key(result) for result in self.results]
        if len(values) < 2:
            return 0.0
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return high - low


def interleave(
    contestants: Mapping[str, Callable[[], T]],
    *,
    repeats: int,
    warmup: int = 1,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Samples[T]]:
    """Run A B C, B C A, C A B, …: whatever disturbs the machine disturbs all of them alike.

    Each contestant is warmed up first. Returns the samples of each, in the order they were given.
    """
    names = list(contestants)
    for name in names:
        for _ in range(warmup):
            progress(f"warming up {name}")
            contestants[name]()
    found: dict[str, list[T]] = {name: [] for name in names}
    for round_ in range(repeats):
        turn = round_ % len(names)
        for name in names[turn:] + names[:turn]:
            progress(f"run {round_ + 1} of {repeats}: {name}")
            found[name].append(contestants[name]())
    return {name: Samples(results) for name, results in found.items()}
