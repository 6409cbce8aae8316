"""The two forms of an answer, whole and in chunks, and what they are made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from labcore.serving.requests import RequestOutput, TokenLogprob
from labcore.serving.server.answer_types import PromptTokensDetails, Reason, Usage
from labcore.serving.server.logprobs import Speller


@dataclass
class Choice:
    """One answer as it grows."""

    index: int
    speller: Speller
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    reason: Reason | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    begun: bool = False  # whether a chunk told of it

    def take(self, output: RequestOutput) -> None:
        """What one step gave."""
        self.text += output.text
        self.tokens += output.tokens
        self.logprobs += output.logprobs
        self.reason = reason_of(output)
        self.prompt_tokens, self.cached_tokens = output.num_prompt_tokens, output.num_cached_tokens


@dataclass(frozen=True)
class Form(ABC):
    """An endpoint's objects. logprobs, token_ids: whether somebody asked for them. usage: in a stream."""

    id: str
    created: int
    model: str
    logprobs: bool
    token_ids: bool
    usage: bool

    kind = ""  # the chunks' `object`

    @abstractmethod
    def whole(self, choices: Sequence[Choice], usage: Usage) -> BaseModel:
        """The answer in one piece."""

    @abstractmethod
    def parts(self, choice: Choice, output: RequestOutput) -> Iterator[dict[str, Any]]:
        """What an output adds to a choice, as choices of chunks."""

    def chunks(self, choice: Choice, output: RequestOutput) -> Iterator[dict[str, Any]]:
        """The events of a stream that tell of an output."""
        for part in self.parts(choice, output):
            if self.token_ids:
                part.setdefault("token_ids", [])
            yield self._chunk([{"index": choice.index, **part}]) | ({"usage": None} if self.usage else {})

    def tail(self, usage: Usage) -> dict[str, Any]:
        """The event behind the last, with the number of tokens."""
        return self._chunk([]) | {"usage": usage.model_dump()}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        named = {"id": self.id, "object": self.kind, "created": self.created, "model": self.model}
        return {**named, "choices": choices}

    def ids_of(self, tokens: Sequence[int]) -> list[int] | None:
        """Tokens, where somebody asked for them."""
        return list(tokens) if self.token_ids else None


def reason_of(output: RequestOutput) -> Reason | None:
    """Why it ended, in OpenAI's words."""
    if output.finish_reason is None:
        return None
    return "length" if output.finish_reason == "length" else "stop"


def usage_of(choices: Sequence[Choice], per_prompt: int) -> Usage:
    """Tokens of all choices; each prompt counts once, as its first choice found it."""
    firsts = choices[::per_prompt]
    prompt = sum(choice.prompt_tokens for choice in firsts)
    completion = sum(len(choice.tokens) for choice in choices)
    cached = PromptTokensDetails(cached_tokens=sum(choice.cached_tokens for choice in firsts))
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=cached,
    )
