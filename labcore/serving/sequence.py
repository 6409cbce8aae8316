"""A request on its way: what is known of it, what has been computed, which blocks it holds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from labcore.generation.answer import Answer
from labcore.generation.sampling import Points, SamplingParams
from labcore.serving.requests import FinishReason, Request

PENDING = -1  # stands for a token that a step under way draws


@dataclass(eq=False)
class Sequence:
    """The state of one request.

    tokens: prompt and answer so far, PENDING what a step under way draws. computed: of them, those whose keys
    and values are in the blocks.
    drafted: guesses behind the known tokens that the next step checks. limit: tokens that it may have in all.
    number: how many were added before it. found: tokens that the prefix cache had when it last joined;
    known_prefix: of its prompt, when it first did. ended: why, once it is over. lingers: over, but its place
    in a fixed batch is kept (and computed for) until the batch is over. swapped: what lies set aside in host
    memory, and of how many tokens.
    """

    request: Request
    arrival_s: float
    limit: int
    answer: Answer
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    drafted: list[int] = field(default_factory=list)
    number: int = 0
    found: int = 0
    known_prefix: int = 0
    admissions: int = 0
    preemptions: int = 0
    ended: FinishReason | None = None
    lingers: bool = False
    swapped: Any = None

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt)

    @cached_property
    def points(self) -> Points:
        """The random numbers of its answer, which depend on its seed and on nothing else."""
        return Points(self.request.sampling.seed)

    @cached_property
    def sampling(self) -> SamplingParams:
        """How its tokens are drawn; its seed is in its points, so that others may share the rest."""
        return replace(self.request.sampling, seed=0)

    @property
    def id(self) -> str:
        """The request's."""
        return self.request.id

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt)

    @property
    def num_output(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self.prompt_length

    @property
    def pending(self) -> int:
        """Known tokens that are not computed: 1 while it decodes; a lingering one computes its last again."""
        return 1 if self.lingers else len(self.tokens) - self.computed

    @property
    def decoding(self) -> bool:
        """Whether only its newest token is missing."""
        return self.pending == 1

    @property
    def full(self) -> bool:
        """Whether nothing is left to compute: it ends when the step under way tells its last token."""
        return len(self.tokens) >= self.limit and not self.lingers

    @property
    def turn(self) -> tuple[int, float, int]:
        """Who is served first: priority, then arrival. What is preempted keeps its turn. No two are equal:
        two that could each come before the other would preempt each other for ever."""
        return (self.request.priority, self.arrival_s, self.number)


@dataclass(frozen=True)
class Row:
    """One sequence's part of a step: `new` tokens behind `start`, the drafted ones included."""

    sequence: Sequence
    start: int
    new: int

    @property
    def draws(self) -> bool:
        """Whether this step reaches the newest known token, so that the next one can be drawn."""
        return self.start + self.new >= len(self.sequence.tokens)


@dataclass(frozen=True)
class Plan:
    """What one step does."""

    rows: list[Row]
    admitted: list[Sequence] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)
    swapped: list[Sequence] = field(default_factory=list)
