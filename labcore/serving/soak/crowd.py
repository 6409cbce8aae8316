"""Clients that stream greedy answers, one after the other, and know what the answers must be."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httpx

from labcore.serving.load.client import CONNECT_S, LoadTestError, message
from labcore.serving.load.stream import DONE, Answer, BadStream, lines

PROMPTS = (
    "Once upon a time",
    "One day, a little girl named",
    "The big dog",
    "Tom and his mom went to the",
    "In the garden there was",
    "Lily had a red ball and",
    "It was raining, so",
    "The old man said",
)
TOKENS = 96
ANSWER_S = 120.0  # for one whole answer
AFTER_ERROR_S = 0.05


@dataclass
class Stream:
    """One answer as it came; times in seconds. left: the client went away in the middle."""

    prompt: int
    sent_s: float
    times: list[float] = field(default_factory=list)
    text: str = ""
    left: bool = False
    error: str | None = None

    @property
    def ttft_s(self) -> float | None:
        """From sent to the first token."""
        return self.times[0] - self.sent_s if self.times else None

    @property
    def gaps_s(self) -> list[float]:
        """Between its tokens."""
        return [later - earlier for earlier, later in pairwise(self.times)]

    def is_wrong(self, known: Sequence[str]) -> bool:
        """Whether a word of it differs from the known answer; of a broken one, what came of it."""
        right = known[self.prompt]
        return not right.startswith(self.text) if self.left or self.error else self.text != right


@dataclass
class Crowd:
    """One server's clients. known: the answers to PROMPTS, asked for one at a time. Use `gathered`."""

    http: httpx.AsyncClient
    model: str
    tokens: int
    known: tuple[str, ...] = ()

    async def learn(self) -> None:
        """Ask for each answer alone. Raises LoadTestError where the server does not give one."""
        answers = []
        for prompt in range(len(PROMPTS)):
            answer = await self.ask(prompt)
            if answer.error:
                raise LoadTestError(f"{self.http.base_url} gives no answer to compare with: {answer.error}.")
            answers.append(answer.text)
        self.known = tuple(answers)

    async def stay(self, users: int, stop: asyncio.Event, *, half_leave: bool = False) -> list[Stream]:
        """So many clients until stop, one answer at a time each; half of them may leave in the middle."""
        streams: list[Stream] = []

        async def user(number: int) -> None:
            draw = random.Random(number)
            while not stop.is_set():
                leaves = half_leave and number % 2
                asked = await self.ask(
                    draw.randrange(len(PROMPTS)), draw.randrange(1, self.tokens) if leaves else None
                )
                streams.append(asked)
                if asked.error:  # a server that is gone is not asked a thousand times
                    await asyncio.sleep(AFTER_ERROR_S)

        async with asyncio.TaskGroup() as group:
            for number in range(users):
                group.create_task(user(number))
        return streams

    async def ask(self, prompt: int, leave_after: int | None = None) -> Stream:
        """Stream one answer; leave after so many events. Never raises for what the server does wrong."""
        stream = Stream(prompt, time.perf_counter())
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._read(stream, leave_after)
        except TimeoutError:
            stream.error = f"no whole answer within {ANSWER_S:g} s"
        except BadStream as bad:
            stream.error = bad.kind
        except (httpx.HTTPError, httpx.StreamError) as error:
            stream.error = type(error).__name__
        return stream

    async def _read(self, stream: Stream, leave_after: int | None) -> None:
        body = {
            "model": self.model, "prompt": PROMPTS[stream.prompt], "max_tokens": self.tokens,
            "temperature": 0, "stream": True,
        }  # fmt: skip
        async with self.http.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != httpx.codes.OK:
                await response.aread()
                stream.error = f"http {response.status_code}: {message(response)}"
                return
            answer = Answer()
            async for line in lines(response.aiter_bytes()):
                data = line.removeprefix("data:").strip()
                if not line.startswith("data:"):
                    continue
                if data == DONE:
                    return
                event = json.loads(data)
                answer.take(event, time.perf_counter())
                stream.times = answer.times
                stream.text += "".join(choice.get("text", "") for choice in event.get("choices", ()))
                if len(stream.times) == leave_after:
                    stream.left = True
                    return
            raise BadStream("disconnected", "the stream ended before the answer did")


@asynccontextmanager
async def gathered(url: str, tokens: int = TOKENS) -> AsyncIterator[Crowd]:
    """A crowd that knows the model's name and its answers. Raises LoadTestError for no server of the kind."""
    timeout = httpx.Timeout(None, connect=CONNECT_S)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=timeout, limits=limits, trust_env=False) as http:
        try:
            cards: Any = (await http.get("/v1/models")).json()["data"]
            crowd = Crowd(http, cards[0]["id"], tokens)
        except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
            raise LoadTestError(f"{url} names no model ({type(error).__name__}); is it a server?") from None
        await crowd.learn()
        yield crowd
