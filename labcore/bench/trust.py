"""Shares of a ceiling that can be trusted: one that is exceeded is measured again, beside the work.

A ceiling is measured, and may be measured in a bad minute: then work exceeds it. All is measured again in
that case, the roofs in turns with the work. A share that stays above 1 by more than `shares.TOLERANCE` is
marked wherever it is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from labcore.bench.interleave import Samples, interleave
from labcore.errors import DeviceError, OutOfMemory
from labcore.shares import is_trusted

AllSamples = dict[str, Samples[Any]]


def measure_trusted(
    contestants: Mapping[str, Callable[[], Any]],
    roofs: Callable[[AllSamples], Mapping[str, Callable[[], Any]]],
    share: Callable[[AllSamples], float],
    *,
    repeats: int,
    warmup: int = 1,
    progress: Callable[[str], None] = lambda _: None,
) -> AllSamples:
    """`interleave` the contestants, and all of them once more where the first time cannot be trusted.

    share: the highest share of its ceiling that any contestant reaches, by these samples. roofs: what takes
    turns with the contestants the second time and measures the roofs, by name, given the first samples; its
    samples are in what is returned, which is all of that second time. Where they cannot be measured (no
    memory is free), the first time is what there is.
    """
    samples: AllSamples = interleave(contestants, repeats=repeats, warmup=warmup, progress=progress)
    if is_trusted(reached := share(samples)):
        return samples
    progress(f"{reached:.0%} of its ceiling: measuring again, with the roof in turns")
    try:
        more = roofs(samples)
    except (OutOfMemory, DeviceError) as error:
        progress(f"the roof cannot be measured again: {error}")
        return samples
    return interleave({**contestants, **more}, repeats=repeats, warmup=warmup, progress=progress)


def best_rate(samples: AllSamples, name: str, rate: float) -> float:
    """A roof's rate: the best that was measured of it, before (rate) or in turns under this name."""
    return max([rate, *samples[name].results]) if name in samples else rate
