"""What the engine tells of every step. Gantt charts, block maps and metrics are drawn from these, and from
nothing else."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

from labcore.serving.requests import FinishReason

RowKind = Literal["prefill", "decode"]


class RowEvent(NamedTuple):
    """One request's part of a step: `new` tokens computed behind `start`, `drawn` tokens of its answer.

    kind: prefill while tokens of the prompt (or of what was lost in a preemption) are computed.
    """

    id: str
    kind: RowKind
    start: int
    new: int
    drawn: int
    blocks: tuple[int, ...]


@dataclass(frozen=True)
class StepEvent:
    """One step. start_s: on the engine's clock; seconds: the whole step, schedule_s: of it, deciding.

    waiting, running: requests after it. preempted: made to wait again; swapped: of those, with their blocks
    copied to the host. admitted: (id, tokens found in the prefix cache, where
    it was preempted its own too). finished: (id, why).
    """

    index: int
    start_s: float
    seconds: float
    schedule_s: float
    rows: tuple[RowEvent, ...]
    waiting: int
    running: int
    blocks_used: int
    blocks_total: int
    admitted: tuple[tuple[str, int], ...] = ()
    preempted: tuple[str, ...] = ()
    swapped: tuple[str, ...] = ()
    finished: tuple[tuple[str, FinishReason], ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens computed."""
        return sum(row.new for row in self.rows)

    @property
    def drawn(self) -> int:
        """Tokens given to requests."""
        return sum(row.drawn for row in self.rows)

    @property
    def end_s(self) -> float:
        """When it was over."""
        return self.start_s + self.seconds

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return plain | {"rows": tuple(row._asdict() for row in self.rows)}


@dataclass(frozen=True)
class EngineStats:
    """Where an engine stands, and what it has done since it was made.

    Tokens: prompt_tokens, of prompts whose answers have begun; output_tokens, of answers; prefix_queries, of
    prompts when they were first admitted, and prefix_hits, what the prefix cache had of those. A preempted
    request adds to `preemptions` and, however often it is computed again, to none of these a second time.
    drafted, accepted: guesses that were checked, and those that were right.
    """

    waiting: int
    running: int
    blocks_used: int
    blocks_total: int
    steps: int
    prompt_tokens: int
    output_tokens: int
    preemptions: int
    prefix_queries: int
    prefix_hits: int
    drafted: int = 0
    accepted: int = 0
