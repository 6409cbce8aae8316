"""Step times read out of an engine's own events, so that the simulator can be held against that engine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from labcore.errors import ConfigError
from labcore.serving.events import StepEvent
from labcore.serving.simulated.costs import Part


@dataclass(frozen=True)
class FittedCosts:
    """Seconds of a step: base_s, and so much for each token of a prompt, each row of one token, and each
    token that they find in the cache.

    A part of a prompt that is one token long counts as what it costs: a decode row.
    """

    base_s: float = 0.0
    prompt_token_s: float = 0.0
    decode_row_s: float = 0.0
    cached_token_s: float = 0.0

    def seconds(self, parts: Sequence[Part]) -> float:
        """Seconds of one step."""
        one, prompts, rows, cached = features(parts)
        return (
            self.base_s * one
            + self.prompt_token_s * prompts
            + self.decode_row_s * rows
            + self.cached_token_s * cached
        )


def features(parts: Sequence[Part]) -> tuple[int, int, int, int]:
    """(1, tokens of prompts, rows of one token, cached tokens) of a step: what the four numbers multiply."""
    rows = sum(part.new == 1 for part in parts)
    return 1, sum(part.new for part in parts) - rows, rows, sum(part.start for part in parts)


def parts_of(event: StepEvent) -> list[Part]:
    """The parts of a step that has been."""
    return [Part(row.start, row.new, row.drawn > 0) for row in event.rows]


def fitted_costs(events: Iterable[StepEvent]) -> FittedCosts:
    """The four numbers by least squares over whole steps, none of them negative.

    A number that would come out below 0, because noise or the run told too little of it, is left out and the
    others are fitted again. Raises ConfigError where there is no step.
    """
    steps = [event for event in events if event.rows]
    if not steps:
        raise ConfigError("There are no steps to fit costs to; run some requests through the engine first.")
    seen = torch.tensor([features(parts_of(event)) for event in steps], dtype=torch.float64)
    seconds = torch.tensor([event.seconds for event in steps], dtype=torch.float64)
    return FittedCosts(*_not_negative(seen, seconds))


def _not_negative(seen: Tensor, seconds: Tensor) -> list[float]:
    """seen: (steps, numbers), seconds: (steps,)."""
    kept = [column for column in range(seen.shape[1]) if seen[:, column].any()]
    found = [0.0] * seen.shape[1]
    while kept:
        scale = seen[:, kept].amax(0)
        solved = torch.linalg.lstsq(seen[:, kept] / scale, seconds[:, None], driver="gelsd").solution[:, 0]
        least = int(solved.argmin())
        if solved[least] >= 0:
            for column, value in zip(kept, (solved / scale).tolist(), strict=True):
                found[column] = value
            break
        del kept[least]
    return found
