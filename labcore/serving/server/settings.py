"""The types of a body's settings: JSON's own, so that "16" is no number and 1 is not true.

A check costs little even for a body of a megabyte: the first mistake ends it, and counts are bounded.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Strict,
    StrictInt,
    Tag,
    WithJsonSchema,
    model_validator,
)

from labcore.generation.sampling import MOST_PENALTY
from labcore.serving.requests import MAX_LOGPROBS
from labcore.serving.server.invalid import refusal

MOST_CHOICES = 128
MOST_PROMPTS = 2_048  # of one request, as OpenAI's
MOST_MESSAGES = 4_096
MOST_STOPS, MOST_STOP_TEXT = 16, 256
HOTTEST = 2.0  # temperature, as OpenAI's

_KINDS = {
    "image_url": "an image", "image": "an image", "input_image": "an image", "input_audio": "a sound",
    "audio_url": "a sound", "video_url": "a film", "file": "a file", "refusal": "a refusal",
}  # fmt: skip
_PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
    "additionalProperties": False,
}
_CONTENT = {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART}]}


class Body(BaseModel):
    """Refuses unknown settings, unless they are null."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        known = cls.model_fields
        for name, value in data.items():
            if value is not None and name not in known:
                raise refusal("is no setting of this server; leave it out.", name)
        return {name: value for name, value in data.items() if name in known}


def _integral(value: Any) -> Any:
    """16.0 is a whole number to JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# whole numbers
Integer: TypeAlias = Annotated[int, Strict(), BeforeValidator(_integral)]
Count: TypeAlias = Annotated[int, Strict(), Field(ge=1), BeforeValidator(_integral)]
Choices: TypeAlias = Annotated[int, Strict(), Field(ge=1, le=MOST_CHOICES), BeforeValidator(_integral)]
TopK: TypeAlias = Annotated[int, Strict(), Field(ge=-1), BeforeValidator(_integral)]
Logprobs: TypeAlias = Annotated[int, Strict(), Field(ge=0, le=MAX_LOGPROBS), BeforeValidator(_integral)]

# numbers
Temperature: TypeAlias = Annotated[float, Strict(), Field(ge=0, le=HOTTEST)]
TopP: TypeAlias = Annotated[float, Strict(), Field(gt=0, le=1)]
MinP: TypeAlias = Annotated[float, Strict(), Field(ge=0, le=1)]
Penalty: TypeAlias = Annotated[float, Strict(), Field(ge=1 / MOST_PENALTY, le=MOST_PENALTY)]
OffPenalty: TypeAlias = Annotated[float, Strict(), Field(json_schema_extra={"enum": [0]})]


def _text_or_list(value: Any) -> str | None:
    return "(text)" if isinstance(value, str) else "(list)" if isinstance(value, list) else None


def _kind_of_prompt(value: Any) -> str | None:
    """By the first item of a list: to try all kinds would cost more and point at no mistake."""
    if isinstance(value, list) and value:
        first = value[0]
        return "(texts)" if isinstance(first, str) else "(lists)" if isinstance(first, list) else "(list)"
    return _text_or_list(value)


TokenIds: TypeAlias = Annotated[list[StrictInt], Field(fail_fast=True)]
Texts: TypeAlias = Annotated[list[str], Field(fail_fast=True, max_length=MOST_PROMPTS)]
ManyTokenIds: TypeAlias = Annotated[list[TokenIds], Field(fail_fast=True, max_length=MOST_PROMPTS)]
Prompt: TypeAlias = Annotated[
    Annotated[str, Tag("(text)")]
    | Annotated[TokenIds, Tag("(list)")]
    | Annotated[Texts, Tag("(texts)")]
    | Annotated[ManyTokenIds, Tag("(lists)")],
    Discriminator(_kind_of_prompt),
    Field(json_schema_extra={"minLength": 1, "minItems": 1}),
]
StopText: TypeAlias = Annotated[str, Field(max_length=MOST_STOP_TEXT)]
Stops: TypeAlias = Annotated[list[StopText], Field(fail_fast=True, max_length=MOST_STOPS)]
Stop: TypeAlias = Annotated[
    Annotated[StopText, Tag("(text)")] | Annotated[Stops, Tag("(list)")], Discriminator(_text_or_list)
]


def _only_text(content: Any) -> Any:
    """One text of all parts. A loop of our own: a model for each of 40,000 parts would take a second."""
    if not isinstance(content, list):
        return content
    parts = []
    for index, part in enumerate(content):
        if not isinstance(part, dict):
            raise refusal('is no part of a message; give {"type": "text", "text": …}.', index)
        if (kind := part.get("type")) != "text":
            raise refusal(_not_text(kind), index)
        if not isinstance(text := part.get("text"), str):
            raise refusal("is no text; give one.", index, "text")
        if unknown := [name for name in part if name not in ("type", "text") and part[name] is not None]:
            raise refusal("is no setting of this server; leave it out.", index, unknown[0])
        parts.append(text)
    return "".join(parts)


def _not_text(kind: Any) -> str:
    what = _KINDS.get(kind, "no text") if isinstance(kind, str) else "no text"
    return f"is {what} and this server reads text alone; leave it out."


Content: TypeAlias = Annotated[str, BeforeValidator(_only_text), WithJsonSchema(_CONTENT)]
