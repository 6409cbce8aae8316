"""What a client may ask for: the bodies of requests, with OpenAI's names and vLLM's for what OpenAI lacks.

What is not here is refused by name, except where it is null. Settings that only matter to OpenAI's own house
(user, metadata, …) are taken and have no effect.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, model_validator

from labcore.generation.sampling import SamplingParams
from labcore.generation.stopping import Stopping
from labcore.serving.server.invalid import refusal
from labcore.serving.server.settings import (
    MOST_MESSAGES,
    Body,
    Choices,
    Content,
    Count,
    Integer,
    Logprobs,
    MinP,
    OffPenalty,
    Penalty,
    Prompt,
    Stop,
    Temperature,
    TokenIds,
    TopK,
    TopP,
)

SEEDS = 2**63


class StreamOptions(Body):
    """include_usage: one more chunk at the end, with the number of tokens."""

    include_usage: StrictBool | None = None
    include_obfuscation: StrictBool | None = None


class GenerationBody(Body):
    """What both endpoints share."""

    model: str
    max_tokens: Count | None = None
    n: Choices | None = None
    stop: Stop | None = None
    seed: Integer | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = Field(None, description="-1 and 0: all tokens.")
    min_p: MinP | None = None
    repetition_penalty: Penalty | None = None
    presence_penalty: OffPenalty | None = None
    frequency_penalty: OffPenalty | None = None
    logit_bias: dict[str, Any] | None = Field(None, json_schema_extra={"maxProperties": 0})
    ignore_eos: StrictBool | None = None
    priority: Integer | None = Field(None, description="Lower is served sooner.")
    return_token_ids: StrictBool | None = Field(None, description="Give the tokens beside the text.")
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None

    @model_validator(mode="after")
    def _refuse_what_is_not_done(self) -> GenerationBody:
        for name in ("presence_penalty", "frequency_penalty"):
            if value := getattr(self, name):
                raise refusal(f"is {value:g}; leave it out, or give repetition_penalty instead.", name)
        if self.logit_bias:
            raise refusal(f"names {len(self.logit_bias)} tokens; leave it out.", "logit_bias")
        if self.stream_options is not None and not self.stream:
            raise refusal("is given and stream is not true; leave it out, or stream.", "stream_options")
        if isinstance(self.stop, list) and "" in self.stop:
            raise refusal("is empty and would end every answer at once; leave it out.",
                          "stop", self.stop.index(""))  # fmt: skip
        return self

    @property
    def choices(self) -> int:
        """Answers a prompt."""
        return self.n or 1

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the number of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def samplings(self) -> list[SamplingParams]:
        """One for each choice, with seeds one apart; no seed: a random one. Raises SamplingError."""
        temperature = 1.0 if self.temperature is None else self.temperature
        seed = secrets.randbelow(SEEDS) if self.seed is None else self.seed
        return [
            SamplingParams(
                temperature=temperature,
                top_k=max(0, self.top_k or 0),
                top_p=1.0 if self.top_p is None else self.top_p,
                min_p=self.min_p or 0.0,
                repetition_penalty=self.repetition_penalty or 1.0,
                seed=(seed + choice) % SEEDS,
            )
            for choice in range(self.choices)
        ]

    def stopping(self, max_new_tokens: int) -> Stopping:
        """When answers end. Raises SamplingError."""
        return Stopping(max_new_tokens, self.stop or (), bool(self.ignore_eos))


class CompletionBody(GenerationBody):
    """POST /v1/completions."""

    prompt: Prompt
    logprobs: Logprobs | None = None
    best_of: Integer | None = Field(None, description="As n only.")
    echo: StrictBool | None = Field(None, json_schema_extra={"enum": [False, None]})
    suffix: str | None = Field(None, json_schema_extra={"enum": ["", None]})

    @model_validator(mode="after")
    def _refuse_old_settings(self) -> CompletionBody:
        if self.best_of is not None and self.best_of != self.choices:
            raise refusal(f"is {self.best_of} and n {self.choices}; leave it out.", "best_of")
        if self.echo:
            raise refusal("is true; leave it out and put the prompt before the answer yourself.", "echo")
        if self.suffix:
            raise refusal(f"has {len(self.suffix)} characters; leave it out.", "suffix")
        return self

    def prompts(self) -> Sequence[str | TokenIds]:
        """Each of them."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt  # type: ignore[return-value]


class Message(Body):
    """Who says what."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content | None = None  # its parts, joined
    name: Any = None

    @property
    def text(self) -> str:
        """What it says, perhaps nothing."""
        return self.content or ""


class ResponseFormat(Body):
    """Of the answer; free text is all there is."""

    type: Literal["text"]


class ChatBody(GenerationBody):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)]
    max_completion_tokens: Count | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Logprobs | None = None
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _refuse_lonely_top(self) -> ChatBody:
        if self.top_logprobs and not self.logprobs:
            raise refusal(f"is {self.top_logprobs} without logprobs; add logprobs: true.", "top_logprobs")
        return self

    @property
    def limit(self) -> int | None:
        """Tokens that an answer may have, by either name."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def limit_param(self) -> str:
        """Which name that is."""
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    @property
    def wanted_logprobs(self) -> int | None:
        """Of how many tokens beside the chosen one; None: of none at all."""
        return (self.top_logprobs or 0) if self.logprobs else None
