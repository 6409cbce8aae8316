"""A step under way: launched, and not yet landed.

An engine that overlaps decides and launches the next step before it reads what this one drew, so that a GPU
need not wait for Python. What was drawn lies on the device then: its places in the sequences hold PENDING,
the scheduler counts them as known, and the runner puts the tokens in their place without the host.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch
from torch import Tensor

from labcore.serving.drawing import Drawn
from labcore.serving.events import RowEvent, RowKind
from labcore.serving.sequence import PENDING, Plan, Row, Sequence

Result = Callable[[], list[Drawn]]  # waits for the step; what each row of its plan got


@dataclass(frozen=True)
class Flight:
    """held: the rows as they stood before it. start_s, decided_s: on the engine's clock."""

    plan: Plan
    held: list[RowEvent]
    result: Result
    start_s: float
    decided_s: float


def row_event(row: Row) -> RowEvent:
    """A row as it stands before its step."""
    sequence = row.sequence
    decoding = sequence.lingers or (sequence.pending == 1 and sequence.num_output > 0)
    kind: RowKind = "decode" if decoding else "prefill"
    return RowEvent(sequence.id, kind, row.start, row.new, 0, tuple(sequence.blocks))


def expect(rows: Rows[Row]) -> None:
    """Let the sequences stand as they will when these rows have landed, with PENDING for what is drawn."""
    for row in rows:
        draws, sequence = row.draws, row.sequence
        sequence.computed = row.start + row.new
        if draws:
            sequence.tokens.append(PENDING)


class Newest:
    """What the newest step drew, on the device, for steps that are launched before the host knows it."""

    def __init__(self) -> None:
        self.chosen = torch.zeros(0, dtype=torch.int64)
        self._places: dict[int, int] = {}

    def keep(self, sequences: Rows[Sequence], chosen: Tensor) -> None:
        """chosen: (R,) int64, one of each sequence."""
        self.chosen = chosen
        self._places = {id(sequence): place for place, sequence in enumerate(sequences)}

    def places(self, rows: Rows[Row]) -> list[int]:
        """Where in `chosen` the token of each row lies that is computed last; -1: the host knows it."""
        return [
            self._places[id(row.sequence)] if row.draws and row.sequence.tokens[-1] == PENDING else -1
            for row in rows
        ]

    def fill(self, tokens: Tensor, rows: Rows[Row], ends: Rows[int]) -> None:
        """Replace PENDING in the packed tokens (N,) of a step; ends: where each row's part of them ends.

        A row that drew NO_TOKEN, which the host does not know yet, computes with token 0 in vain.
        """
        found = [(end - 1, place) for end, place in zip(ends, self.places(rows), strict=True) if place >= 0]
        if found:
            into, of = torch.tensor(found, device=tokens.device).unbind(1)
            tokens.index_copy_(0, into, self.chosen.index_select(0, of).clamp_min(0))
