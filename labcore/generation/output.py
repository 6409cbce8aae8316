"""What generation returns: steps while it runs, an output when it is done."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from labcore.generation.trace import Trace

Phase = Literal["prefill", "decode"]
FinishReason = Literal["eos", "stop", "length"]


@dataclass(frozen=True)
class Step:
    """One token of one answer. `text` is what it makes visible (may be empty), `seconds` the step's time."""

    index: int
    phase: Phase
    token: int
    text: str
    seconds: float
    finish_reason: FinishReason | None = None


@dataclass
class Output:
    """One finished answer. Times in seconds; the prompt is not part of `text` and `tokens`: the prompt's text
    and `text` together are the text of both.

    In a batch all sequences step together, so each output carries the batch's step times up to its own end.
    drafted, accepted: guesses that were checked and those that were right, where there was speculation.
    Tokens of one check come together: the first has its time, the others none.
    """

    prompt_tokens: list[int]
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason = "length"
    step_seconds: list[float] = field(default_factory=list)
    trace: Trace | None = None
    score: float | None = None
    drafted: int = 0
    accepted: int = 0

    @property
    def seconds(self) -> float:
        """End-to-end latency: all steps."""
        return sum(self.step_seconds)

    @property
    def ttft_s(self) -> float:
        """Time to first token: the prefill step and its draw."""
        return self.step_seconds[0]

    @property
    def tpot_s(self) -> float | None:
        """Mean time per output token after the first; None for a single token."""
        later = self.step_seconds[1:]
        return sum(later) / len(later) if later else None

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second of the whole answer."""
        return len(self.tokens) / self.seconds
