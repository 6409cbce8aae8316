"""What is answered: OpenAI's objects. Chunks of a stream are made in `completions` and `chat`."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import BaseModel, Field

Reason: TypeAlias = Literal["stop", "length"]


class PromptTokensDetails(BaseModel):
    """cached_tokens: of the prompts, found in the prefix cache."""

    cached_tokens: int = 0


class Usage(BaseModel):
    """Tokens. A prompt counts once, however many answers it gets."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails = Field(default_factory=PromptTokensDetails)


class ModelCard(BaseModel):
    """The model. max_model_len: tokens of a prompt and its answer."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "labcore"
    max_model_len: int


class ModelList(BaseModel):
    """GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    """GET /health."""

    status: Literal["ok"] = "ok"


class CompletionLogprobs(BaseModel):
    """One entry a token. text_offset: where in the answer's text it begins, in characters."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One answer."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Reason
    token_ids: list[int] | None = None


class CompletionAnswer(BaseModel):
    """Of /v1/completions."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class TopLogprob(BaseModel):
    """A token, its natural logarithm of probability, and its bytes (null: it stands for no text)."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatLogprob(TopLogprob):
    """The chosen token, and the best ones beside it."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """One entry a token."""

    content: list[ChatLogprob]
    refusal: None = None


class ChatMessage(BaseModel):
    """What the model says."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Reason
    token_ids: list[int] | None = None


class ChatAnswer(BaseModel):
    """Of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
