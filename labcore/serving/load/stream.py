"""The server-sent events of one streamed completion, as tokens with times."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from labcore.serving.metrics import RequestRecord
from labcore.serving.workload import Arrival

DONE = "[DONE]"


class BadStream(Exception):
    """A stream that broke off or is none. kind: how it is counted."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


@dataclass
class Answer:
    """What has come of one answer so far. closing_s: of a last event that showed no text."""

    times: list[float] = field(default_factory=list)
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    closing_s: float | None = None
    finished: bool = False

    def take(self, event: dict[str, Any], now: float) -> None:
        """One event of the stream. Raises BadStream where it tells of an error."""
        if event.get("error"):
            told = event["error"]
            text = told.get("message", told) if isinstance(told, dict) else told
            raise BadStream("error in the stream", str(text))
        usage = event.get("usage")
        if usage:
            self.prompt_tokens = usage.get("prompt_tokens")
            self.output_tokens = usage.get("completion_tokens")
        for choice in event.get("choices") or ():
            count = tokens_in(choice)
            self.times += [now] * count
            if choice.get("finish_reason"):
                self.finished = True
                self.closing_s = None if count else now

    def close(self) -> None:
        """The stream is over. A last token without text is only known by the server's count."""
        known = self.output_tokens
        if self.closing_s is not None and known is not None and known > len(self.times):
            self.times.append(self.closing_s)
        if not self.times:
            raise BadStream("no tokens", "the answer held no tokens")

    def record(
        self, arrival: Arrival, start_s: float, sent_s: float, now: float, error: str | None, detail: str
    ) -> RequestRecord:
        """All about the request; `now` is its end where it failed."""
        return RequestRecord(
            id=arrival.id,
            start_s=start_s,
            first_token_s=self.times[0] if self.times else None,
            end_s=now if error else self.times[-1],
            prompt_tokens=arrival.prompt_tokens if self.prompt_tokens is None else self.prompt_tokens,
            output_tokens=len(self.times) if self.output_tokens is None else self.output_tokens,
            token_times=tuple(self.times),
            error=error,
            detail=detail,
            sent_s=sent_s,
        )


def tokens_in(choice: dict[str, Any]) -> int:
    """Tokens in one event: as many as it lists, else one, unless it only says why the answer ends."""
    if choice.get("token_ids"):
        return len(choice["token_ids"])
    listed = (choice.get("logprobs") or {}).get("tokens")
    if listed:
        return len(listed)
    return 0 if choice.get("finish_reason") and not choice.get("text") else 1


async def lines(pieces: AsyncIterable[bytes]) -> AsyncIterator[str]:
    """A body's lines. They end at newlines alone: httpx's own also end at what a token's text may hold."""
    rest = b""
    async for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line.decode("utf-8", "replace").rstrip("\r")
    if rest:
        yield rest.decode("utf-8", "replace")


async def read_stream(body: AsyncIterable[str], answer: Answer, clock: Callable[[], float]) -> None:
    """Fill `answer` from the lines of a response. Raises BadStream where it breaks off or is no stream.

    Reads to the end of the body, so that the connection can be used again.
    """
    done = False
    async for line in body:
        if done or not line.startswith("data:"):
            continue  # comments that keep a connection alive, names of events, blank lines between them
        data = line.removeprefix("data:").strip()
        if data == DONE:
            answer.finished = done = True
            continue
        answer.take(_event(data), clock())
    if not answer.finished:
        raise BadStream("disconnected", "the stream ended before the answer did")
    answer.close()


def _event(data: str) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise BadStream("bad stream", f"no JSON object in the stream: {data[:100]}")
    return event
