"""What somebody asks the serving engine for, and what one step did for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from labcore.errors import LabError, SamplingError
from labcore.generation.sampling import SamplingParams
from labcore.generation.stopping import Stopping

FinishReason = Literal["eos", "stop", "length", "abort"]
MAX_LOGPROBS = 20


@dataclass(frozen=True)
class Request:
    """One prompt with its settings.

    prompt: token ids. priority: lower is served sooner, equal ones in order of arrival. logprobs: None asks
    for none, k for the chosen token's and those of the k best. arrival_s: on the engine's clock; None: when
    it is added. Raises SamplingError for a number of logprobs that is out of range.
    """

    id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stopping: Stopping = field(default_factory=Stopping)
    priority: int = 0
    logprobs: int | None = None
    arrival_s: float | None = None

    def __post_init__(self) -> None:
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise SamplingError(f"logprobs is {self.logprobs}; ask for 0 to {MAX_LOGPROBS}, or for none.")


@dataclass(frozen=True)
class TokenLogprob:
    """Natural logarithms of probabilities before temperature and cuts. top: (token, logprob), best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class RequestOutput:
    """What one step gave one request.

    tokens: new ones, several where a speculation was accepted, none where a request was aborted. text: what
    they made visible, the rest of the answer once it is finished. num_output_tokens: so far.
    num_cached_tokens: of the prompt, found in the prefix cache. error: why the engine aborted it, where it
    could not go on (its logits are no numbers, say).
    """

    id: str
    tokens: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_cached_tokens: int = 0
    error: LabError | None = None

    @property
    def finished(self) -> bool:
        """Whether nothing more will come."""
        return self.finish_reason is not None
