"""From what a client sent to token ids, and how many tokens may follow them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from labcore.serving.server.api_types import Message
from labcore.serving.server.errors import ApiError
from labcore.serving.server.limits import Limits
from labcore.tokenizer import Tokenizer

ChatTemplate: TypeAlias = Callable[[Sequence[Message]], str]

LONG_TEXT = 10_000  # characters; the event loop should not wait for the tokens of more
USUAL_TOKENS = 16  # of a completion whose length nobody gives, as OpenAI's


def plain_template(messages: Sequence[Message]) -> str:
    """A conversation as plain text, for models without a template of their own.

    One line "role: content" for each message, and "assistant:" for the answer to follow.
    """
    return "".join(f"{message.role}: {message.text}\n" for message in messages) + "assistant:"


def encode(prompt: str | Sequence[int], tokenizer: Tokenizer | None, param: str) -> tuple[int, ...]:
    """Token ids of a prompt, with the first token that the model expects. Raises ApiError."""
    if not prompt:
        raise ApiError(400, f"{param} is empty; give at least one character or one token.", param=param)
    if not isinstance(prompt, str):
        return tuple(prompt)
    if tokenizer is None:
        message = f"{param} is text and this model has no tokenizer; send token ids to /v1/completions."
        raise ApiError(400, message, param=param)
    return tuple(tokenizer.encode(prompt, tokenizer.adds_bos))


async def encode_all(
    prompts: Sequence[str | Sequence[int]], tokenizer: Tokenizer | None, param: str
) -> list[tuple[int, ...]]:
    """Token ids of several prompts; long ones beside the event loop. Raises ApiError."""
    if not prompts:
        raise ApiError(400, f"{param} is an empty list; give at least one prompt.", param=param)
    if sum(map(len, prompts)) > LONG_TEXT:
        return await asyncio.to_thread(lambda: [encode(prompt, tokenizer, param) for prompt in prompts])
    return [encode(prompt, tokenizer, param) for prompt in prompts]


@dataclass(frozen=True)
class Lengths:
    """Tokens of an answer. wanted: by the client; usual: where it does not say (None: all there may be)."""

    wanted: int | None
    usual: int | None = None

    def room(self, length: int, max_model_len: int, limits: Limits, param: str) -> int:
        """How many tokens may answer a prompt of this length.

        Raises ApiError where the prompt, or prompt and answer, are longer than the limits.
        """
        most_prompt = min(limits.max_prompt_tokens or max_model_len, max_model_len - 1)
        if length > most_prompt:
            message = f"The prompt is {length} tokens and may be {most_prompt} here; shorten it."
            raise ApiError(400, message, param=param, code="context_length_exceeded")
        free = max_model_len - length
        most = min(limits.max_tokens or free, free)
        if self.wanted is None:
            return min(self.usual or most, most)
        if self.wanted > most:
            raise ApiError(
                400,
                f"The prompt is {length} tokens and max_tokens {self.wanted}; {most} may follow it here "
                f"({max_model_len} in all), so ask for fewer or shorten the prompt.",
                param="max_tokens",
                code="context_length_exceeded",
            )
        return self.wanted
