"""From text to token ids, so that a long text delays nobody but its sender."""

from __future__ import annotations

import asyncio
import ctypes
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

from labcore.serving.server.errors import ApiError
from labcore.serving.server.prompts import Room
from labcore.tokenizer import Tokenizer

LONG_TEXT = 2_000  # characters; the event loop should not wait for the tokens of more
MOST_WAITING = 4_000_000  # characters that may wait for their tokens, all clients together
TRIM_TEXT = 100_000  # characters; what the allocator keeps after more is given back to the system

OnePrompt: TypeAlias = str | Sequence[int]


class Encoder:
    """Encodes prompts. `start` it before a long one comes; `close` ends its thread.

    What is certainly longer than there is room for is refused before it is encoded. Short prompts are encoded
    at once; long ones one after another on a thread, where the tokenizer lets others run, so that their
    memory does not add up. Beyond `most_waiting` characters a long prompt is refused (429).
    """

    def __init__(self, tokenizer: Tokenizer | None, room: Room, *, most_waiting: int = MOST_WAITING) -> None:
        self._tokenizer, self._room, self._most_waiting = tokenizer, room, most_waiting
        self._waiting = 0  # characters
        self._worker: ThreadPoolExecutor | None = None

    def start(self) -> None:
        """Allow long prompts."""
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="labcore-encoder")

    def close(self) -> None:
        """Drop what waits, and end the thread after the prompt it is at."""
        if self._worker is not None:
            self._worker.shutdown(cancel_futures=True)
            self._worker = None

    async def encode_all(self, prompts: Sequence[OnePrompt], param: str) -> list[tuple[int, ...]]:
        """Token ids of prompts, with the first token that the model expects. Raises ApiError."""
        if not prompts:
            raise ApiError(400, f"{param} is an empty list; give at least one prompt.", param=param)
        for prompt in prompts:
            self._ensure_possible(prompt, param)
        size = sum(len(prompt) for prompt in prompts if isinstance(prompt, str))
        if size <= LONG_TEXT:
            return self._encode(prompts)
        self._ensure_place(size)
        self._waiting += size
        try:
            return await asyncio.get_running_loop().run_in_executor(self._worker, self._encode, prompts)
        finally:
            self._waiting -= size

    def _ensure_possible(self, prompt: OnePrompt, param: str) -> None:
        if not prompt:
            raise ApiError(400, f"{param} is empty; give at least one character or one token.", param=param)
        if not isinstance(prompt, str):
            self._room.ensure_fits(len(prompt), param)
        elif self._tokenizer is None:
            message = f"{param} is text and this model has no tokenizer; send token ids to /v1/completions."
            raise ApiError(400, message, param=param)
        else:
            self._room.ensure_fits(self._tokenizer.fewest_tokens(prompt), param, bound=True)

    def _ensure_place(self, size: int) -> None:
        if self._waiting and self._waiting + size > self._most_waiting:
            wait = self._room.limits.retry_after_s
            raise ApiError(
                429,
                f"Prompts of {self._waiting:,} characters wait to be encoded, of {self._most_waiting:,} that "
                f"may, and this request has {size:,} more; try again in {wait} s.",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(wait)},
            )

    def _encode(self, prompts: Sequence[OnePrompt]) -> list[tuple[int, ...]]:
        ids, longest = [], 0
        for prompt in prompts:
            if isinstance(prompt, str):
                assert self._tokenizer is not None
                ids.append(tuple(self._tokenizer.encode(prompt, self._tokenizer.adds_bos)))
                longest = max(longest, len(prompt))
            else:
                ids.append(tuple(prompt))
        if longest > TRIM_TEXT:
            _give_back_memory()
        return ids


def _give_back_memory() -> None:
    """Of a text of a megabyte, glibc's allocator would keep a hundred for good."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
