"""How a conversation becomes one prompt, how long prompts may be, and how many tokens may follow them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from labcore.serving.server.api_types import Message
from labcore.serving.server.errors import ApiError
from labcore.serving.server.limits import Limits

ChatTemplate: TypeAlias = Callable[[Sequence[Message]], str]

USUAL_TOKENS = 16  # of a completion whose length nobody gives, as OpenAI's


def plain_template(messages: Sequence[Message]) -> str:
    """A conversation as plain text, for models without a template of their own.

    One line "role: content" for each message, and "assistant:" for the answer to follow.
    """
    return "".join(f"{message.role}: {message.text}\n" for message in messages) + "assistant:"


@dataclass(frozen=True)
class Room:
    """Tokens that prompts and answers may have. why: what ends the context, as the end of a clause."""

    max_model_len: int
    limits: Limits
    why: str = ""

    @property
    def prompt(self) -> int:
        """Of one prompt, so that one token can follow it."""
        return min(self.limits.max_prompt_tokens or self.max_model_len, self.max_model_len - 1)

    def ensure_fits(self, length: int, param: str, *, bound: bool = False) -> None:
        """Raises ApiError for a prompt that is too long. bound: it has so many tokens at least."""
        if length > self.prompt:
            counted = f"at least {length}" if bound else f"{length}"
            why = self.why if self.prompt == self.max_model_len - 1 else ""
            message = f"The prompt is {counted} tokens and may be {self.prompt} here{why}; shorten it."
            raise ApiError(400, message, param=param, code="context_length_exceeded")


@dataclass(frozen=True)
class Lengths:
    """Tokens of an answer. wanted: by the client; usual: where it does not say (None: all there may be).

    param: the client's name for `wanted`.
    """

    wanted: int | None
    usual: int | None = None
    param: str = "max_tokens"

    def of(self, length: int, room: Room, param: str) -> int:
        """How many tokens may answer a prompt of this length.

        Raises ApiError where the prompt, or prompt and answer, are longer than there is room.
        """
        room.ensure_fits(length, param)
        free = room.max_model_len - length
        most = min(room.limits.max_tokens or free, free)
        if self.wanted is None:
            return min(self.usual or most, most)
        if self.wanted > most:
            raise ApiError(
                400,
                f"The prompt is {length} tokens and {self.param} {self.wanted}; {most} may follow it here "
                f"({room.max_model_len} in all), so ask for fewer or shorten the prompt.",
                param=self.param,
                code="context_length_exceeded",
            )
        return self.wanted
