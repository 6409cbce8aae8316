"""What a client may ask for: the bodies of requests, with OpenAI's names and vLLM's for what OpenAI lacks.

What is not here is refused by name, except where it is null. Settings that only matter to OpenAI's own house
(user, metadata, …) are taken and have no effect.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StrictInt, model_validator

from labcore.generation.sampling import SamplingParams
from labcore.generation.stopping import Stopping
from labcore.serving.requests import MAX_LOGPROBS

SEEDS = 2**63
COLD = 1e-5
MOST_CHOICES = 128

# the first wrong one of many is enough to refuse them
TokenIds: TypeAlias = Annotated[list[StrictInt], Field(fail_fast=True)]
Texts: TypeAlias = Annotated[list[str], Field(fail_fast=True)]
ManyTokenIds: TypeAlias = Annotated[list[TokenIds], Field(fail_fast=True)]
StopText: TypeAlias = Annotated[str, Field(max_length=256)]
Logprobs: TypeAlias = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]


class Body(BaseModel):
    """Refuses unknown settings, unless they are null."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if value is not None or name in cls.model_fields}


class StreamOptions(Body):
    """include_usage: one more chunk at the end, with the number of tokens."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class GenerationBody(Body):
    """What both endpoints share."""

    model: str
    max_tokens: int | None = Field(None, ge=1)
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, description="-1 and 0: all tokens.")
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0)
    presence_penalty: float | None = Field(None, json_schema_extra={"enum": [0, None]})
    frequency_penalty: float | None = Field(None, json_schema_extra={"enum": [0, None]})
    logit_bias: dict[str, float] | None = Field(None, json_schema_extra={"maxProperties": 0})
    ignore_eos: bool | None = None
    priority: int | None = Field(None, description="Lower is served sooner.")
    return_token_ids: bool | None = Field(None, description="Give the tokens beside the text.")
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
                raise ValueError(f"{name} is {value:g}; leave it out, or give repetition_penalty instead.")
        if self.logit_bias:
            raise ValueError(f"logit_bias names {len(self.logit_bias)} tokens; leave it out.")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is given and stream is not true; leave it out, or stream.")
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
        """One for each choice, with seeds one apart; no seed: a random one. Raises SamplingError.

        A temperature so low that logits could overflow is taken as 0.
        """
        temperature = 1.0 if self.temperature is None else self.temperature
        seed = secrets.randbelow(SEEDS) if self.seed is None else self.seed
        return [
            SamplingParams(
                temperature=temperature if temperature >= COLD else 0.0,
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

    prompt: str | TokenIds | Texts | ManyTokenIds = Field(json_schema_extra={"minLength": 1, "minItems": 1})
    logprobs: Logprobs | None = None
    best_of: int | None = Field(None, description="As n only.")
    echo: bool | None = Field(None, json_schema_extra={"enum": [False, None]})
    suffix: str | None = Field(None, json_schema_extra={"enum": ["", None]})

    @model_validator(mode="after")
    def _refuse_old_settings(self) -> CompletionBody:
        if self.best_of is not None and self.best_of != self.choices:
            raise ValueError(f"best_of is {self.best_of} and n {self.choices}; leave best_of out.")
        if self.echo:
            raise ValueError("echo is true; leave it out and put the prompt before the answer yourself.")
        if self.suffix:
            raise ValueError(f"suffix has {len(self.suffix)} characters; leave it out.")
        return self

    def prompts(self) -> Sequence[str | TokenIds]:
        """Each of them."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt  # type: ignore[return-value]


class TextPart(Body):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class Message(Body):
    """Who says what."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None
    name: Any = None

    @property
    def text(self) -> str:
        """Its parts, joined."""
        parts = self.content or ""
        return parts if isinstance(parts, str) else "".join(part.text for part in parts)


class ResponseFormat(Body):
    """Of the answer; free text is all there is."""

    type: Literal["text"]


class ChatBody(GenerationBody):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: Logprobs | None = None
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _refuse_lonely_top(self) -> ChatBody:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError(f"top_logprobs is {self.top_logprobs} without logprobs; add logprobs: true.")
        return self

    @property
    def limit(self) -> int | None:
        """Tokens that an answer may have, by either name."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def wanted_logprobs(self) -> int | None:
        """Of how many tokens beside the chosen one; None: of none at all."""
        return (self.top_logprobs or 0) if self.logprobs else None
