"""Requests with drawn lengths and arrivals, as many a second as this engine can about carry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from labcore.errors import LessonError
from labcore.lab.serving_play import PLACES, Watch, play
from labcore.model import Model
from labcore.serving import Request, StepEvent
from labcore.serving.offline import requests_of
from labcore.serving.workload import LengthSpec, Workload, make_workload

LOAD = 0.9  # arrivals, as a share of what the engine can carry
LONGEST = 5  # means: longer draws are cut, so that a class need not wait for one request in 150


def make_load(
    model: Model,
    *,
    n: int = 32,
    rate: float | None = None,
    prompt: float = 32,
    output: float = 32,
    constant: bool = False,
    seed: int = 0,
) -> Workload:
    """n requests with random tokens of this model; prompt, output: mean lengths in tokens, exponential ones
    (up to 5 means) unless constant. rate: requests/s, None: all at once. Raises LessonError where the
    longest cannot fit the model's context."""
    specs = [_lengths(mean, constant) for mean in (prompt, output)]
    room, longest = model.config.max_position_embeddings, sum(spec.high for spec in specs)
    if longest > room:
        raise LessonError(
            f"Lengths of {prompt:g} and {output:g} tokens in the mean can reach {longest} together, and "
            f"{model.name!r} holds {room}; ask for shorter ones."
        )
    vocab = model.config.vocab_size
    return make_workload(n, rate=rate, prompt=specs[0], output=specs[1], vocab_size=vocab, seed=seed)


def _lengths(mean: float, constant: bool) -> LengthSpec:
    if constant:
        return LengthSpec.fixed(round(mean))
    return LengthSpec.exponential(mean, 1, max(1, round(LONGEST * mean)))


def capacity(
    model: Model,
    *,
    places: int = PLACES,
    n: int | None = None,
    watch: Watch | None = None,
    **lengths: Any,
) -> float:
    """Requests/s that continuous batching carries here: measured on n of them (default: four for each place)
    while its queue is not empty.

    lengths: as in `make_load`. The best of three runs: the first warms up, and others only ever disturb.
    """
    load = make_load(model, n=n or 4 * places, **lengths)
    at_once = requests_of(load)
    mean = sum(one.output_tokens for one in load) / len(load)
    runs = [play(model, at_once, "continuous", places=places, watch=watch)[0] for _ in range(3)]
    return max(map(_full_rate, runs)) / mean


def _full_rate(events: Sequence[StepEvent]) -> float:
    """Tokens/s while somebody waited."""
    full = [event for event in events if event.waiting] or list(events)
    return sum(event.drawn for event in full) / (full[-1].end_s - full[0].start_s)


def near_capacity(
    model: Model,
    *,
    n: int = 32,
    load: float = LOAD,
    places: int = PLACES,
    seed: int = 0,
    watch: Watch | None = None,
    **lengths: Any,
) -> tuple[Request, ...]:
    """n requests that arrive at random, in the mean at `load` times what this engine can carry here."""
    rate = load * capacity(model, places=places, seed=seed, watch=watch, **lengths)
    return arriving(model, rate, n=n, seed=seed, **lengths)


def arriving(model: Model, rate: float, *, n: int = 32, seed: int = 0, **lengths: Any) -> tuple[Request, ...]:
    """n requests that arrive at random, `rate` a second in the mean. lengths: as in `make_load`."""
    return requests_of(make_load(model, n=n, rate=rate, seed=seed, **lengths))
