"""What one client may ask of a server, so that it cannot take it from the others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labcore.errors import ConfigError
from labcore.serving.server.errors import ApiError, error_response

PATIENCE = 16  # an overlong body is read up to so many times the limit, so that its sender reads the answer,
PATIENCE_S = 5.0  # and for so long
FREE_PIECES = 1024  # a body may come in so many pieces, however small,
PIECE_BYTES = 64  # and in one more for so many bytes of it
LAST = {"Connection": "close"}  # the rest of the body is not waited for
_COUNTS = (
    "max_body_bytes", "max_prompt_tokens", "max_tokens", "max_concurrency", "max_connections",
    "retry_after_s",
)  # fmt: skip
_SECONDS = ("body_timeout_s", "request_timeout_s", "grace_s", "header_timeout_s", "idle_timeout_s")


@dataclass(frozen=True)
class Limits:
    """Of one server. None: what the engine holds.

    max_body_bytes: of a request (413). max_prompt_tokens, max_tokens: of one prompt and one answer (400).
    max_concurrency: answers that run or wait at once, each choice counted (429, with Retry-After).
    body_timeout_s: until a body is there (408). request_timeout_s: until the answer is complete (504).
    grace_s: after being told to stop, until what still runs is aborted. max_connections: open at once, as far
    as there are file descriptors. header_timeout_s: until a request's headers are there (408).
    idle_timeout_s: until a connection that asks nothing more is closed. Raises ConfigError below 1, or 0 s.
    """

    max_body_bytes: int = 2**20
    max_prompt_tokens: int | None = None
    max_tokens: int | None = None
    max_concurrency: int = 256
    retry_after_s: int = 1
    body_timeout_s: float = 30.0
    request_timeout_s: float = 600.0
    grace_s: float = 30.0
    max_connections: int = 2048
    header_timeout_s: float = 10.0
    idle_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        for name in _COUNTS:
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1.")
        for name in _SECONDS:
            if (value := getattr(self, name)) < 0:
                raise ConfigError(f"{name} is {value}; it must be 0 or more seconds.")


class Gate:
    """Counts the answers that run or wait."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.taken = 0

    @contextmanager
    def hold(self, places: int, param: str) -> Iterator[None]:
        """Take places for as long as the block runs. Raises ApiError where there are too few.

        param: the client's name for what it asks too much of.
        """
        most = self._limits.max_concurrency
        if places > most:
            message = f"The request asks for {places} answers and {most} may run at once; ask for fewer."
            raise ApiError(400, message, param=param)
        if self.taken + places > most:
            wait = self._limits.retry_after_s
            raise ApiError(
                429,
                f"{self.taken} of {most} answers are being made and this request asks for {places} more; try "
                f"again in {wait} s.",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(wait)},
            )
        self.taken += places
        try:
            yield
        finally:
            self.taken -= places


class BodyLimit:
    """Reads a request's body before the app sees it; refuses one that is too long or too slow."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await self._read(scope, receive)
        except ApiError as error:
            await error_response(error)(scope, receive, send)
        else:
            if body is not None:
                await self._app(scope, _replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; None: the client left. Raises ApiError for one that is too long or too slow, or
        comes in too many pieces."""
        most, seconds = self._limits.max_body_bytes, self._limits.body_timeout_s
        announced = _announced(scope)
        if announced > most * PATIENCE:
            raise self._too_long(announced)
        body, length, pieces, more = bytearray(), 0, 0, True
        try:
            async with asyncio.timeout(seconds) as time_left:
                while more and length <= most * PATIENCE:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    part, more = message.get("body", b""), message.get("more_body", False)
                    pieces, length = pieces + 1, length + len(part)
                    ensure_large_pieces(pieces, length)
                    if length <= most:
                        body += part
                    elif length - len(part) <= most:  # what follows is read and thrown away
                        time_left.reschedule(asyncio.get_running_loop().time() + min(PATIENCE_S, seconds))
        except TimeoutError:
            if length <= most:
                raise _late(seconds) from None
        if length > most:
            raise self._too_long(max(length, announced))
        return bytes(body)

    def _too_long(self, length: int) -> ApiError:
        most = self._limits.max_body_bytes
        return ApiError(
            413, f"The body is {length:,} bytes or more and may be {most:,}; send less at once.",
            code="request_too_large",
        )  # fmt: skip


def ensure_large_pieces(pieces: int, length: int) -> None:
    """Raises ApiError for a body of so many bytes in so many pieces: each costs what a large one costs."""
    if pieces > FREE_PIECES + length // PIECE_BYTES:
        said = f"The body came in {pieces:,} pieces for {length:,} bytes; send it in larger ones."
        raise ApiError(400, said, headers=LAST)


def _late(seconds: float) -> ApiError:
    return ApiError(
        408, f"The body was not there after {seconds:g} s; send it faster or shorter.", headers=LAST
    )


def _announced(scope: Scope) -> int:
    """The body's length by its header; 0 where there is none."""
    value = dict(scope["headers"]).get(b"content-length", b"0")
    return int(value) if value.isdigit() else 0


def _replay(body: bytes, receive: Receive) -> Receive:
    """A body that was read already, then whatever comes next."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again
