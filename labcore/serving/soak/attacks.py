"""One misbehaving client at a time, in a process of its own, so that what it costs itself counts for nobody.

Each attack runs for some seconds against 127.0.0.1 or another loopback address, and counts what it was told.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

from labcore.serving.server.descriptors import room_for

PROMPT_CHARACTERS = 1_000_000
CHUNKS = 1_000_000  # of one byte: 6 MB on the wire
SLOW = 200  # connections
FLOOD = 64  # connections
RETRY_S = 0.05
ANSWERED = "answered"  # what a foreign host must not be
_Reached = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Attacker:
    """Where it goes, and what it saw: statuses, "closed", "not connected". idle: connections it opens."""

    host: str
    port: int
    model: str
    idle: int
    seen: Counter[str] = field(default_factory=Counter)

    async def connect(self) -> _Reached | None:
        """A connection; None where there is none to be had."""
        try:
            return await asyncio.open_connection(self.host, self.port)
        except OSError:
            self.seen["not connected"] += 1
            await asyncio.sleep(RETRY_S)
            return None

    async def send(self, sent: bytes) -> str | None:
        """The status of the answer to these bytes, on a connection of their own; None: closed without one."""
        if (reached := await self.connect()) is None:
            return None
        reader, writer = reached
        status = None
        try:
            writer.write(sent)
            with suppress(ConnectionError):  # refused before its end
                await writer.drain()
            status = await read_status(reader)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.transport.abort()
        self.seen[status or "closed"] += 1
        return status

    def head(self, line: str = "POST /v1/completions", *more: str, host: str | None = None) -> bytes:
        """The beginning of a request."""
        lines = [f"{line} HTTP/1.1", f"Host: {host or self.host}", *more]
        return "\r\n".join(lines).encode() + b"\r\n\r\n"

    def ask(self, prompt: str, host: str | None = None) -> bytes:
        """A whole request for one token."""
        body = json.dumps({"model": self.model, "prompt": prompt, "max_tokens": 1}).encode()
        kind = ("Content-Type: application/json", f"Content-Length: {len(body)}")
        return self.head("POST /v1/completions", *kind, host=host) + body


async def read_status(reader: asyncio.StreamReader) -> str:
    """The status of one answer, whose body is read. Raises what a broken connection raises."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    for line in head.split("\r\n"):
        if line.startswith("content-length:"):
            await reader.readexactly(int(line.split(":")[1]))
    return head.split(" ", 2)[1]


async def long_prompt(attacker: Attacker) -> None:
    """Prompts of 1 MB, one at a time."""
    sent = attacker.ask(("a b " * PROMPT_CHARACTERS)[:PROMPT_CHARACTERS])
    while True:
        await attacker.send(sent)


async def long_prompts(attacker: Attacker) -> None:
    """Twenty prompts of 1 MB at once, again and again."""
    async with asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(long_prompt(attacker))


async def one_byte_chunks(attacker: Attacker) -> None:
    """A body of 1 MB in chunks of one byte, again and again."""
    kind = ("Content-Type: application/json", "Transfer-Encoding: chunked")
    sent = attacker.head("POST /v1/completions", *kind) + b"1\r\nx\r\n" * CHUNKS + b"0\r\n\r\n"
    while True:
        await attacker.send(sent)


async def slow_headers(attacker: Attacker) -> None:
    """Connections whose headers come a byte a second and never end."""

    async def one() -> None:
        while True:
            if (reached := await attacker.connect()) is None:
                continue
            reader, writer = reached
            with suppress(ConnectionError):
                writer.write(b"GET /health HTTP/1.1\r\na: ")
                while not reader.at_eof():
                    writer.write(b"x")
                    await writer.drain()
                    with suppress(TimeoutError):
                        await asyncio.wait_for(reader.read(4096), 1)
            writer.transport.abort()
            attacker.seen["closed"] += 1

    await _many(one, SLOW)


async def idle_connections(attacker: Attacker) -> None:
    """More connections than the server has file descriptors, which say nothing; closed ones come again."""

    async def one() -> None:
        while True:
            if (reached := await attacker.connect()) is None:
                continue
            with suppress(ConnectionError):
                await reached[0].read(4096)
            reached[1].transport.abort()
            attacker.seen["closed"] += 1

    await _many(one, room_for(attacker.idle))


async def tiny_requests(attacker: Attacker) -> None:
    """Requests without work, as fast as they are answered, on many connections."""
    sent = attacker.head("GET /health")

    async def one() -> None:
        while True:
            if (reached := await attacker.connect()) is None:
                continue
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                while True:
                    reached[1].write(sent)
                    attacker.seen[await read_status(reached[0])] += 1
            reached[1].transport.abort()

    await _many(one, FLOOD)


async def new_connections(attacker: Attacker) -> None:
    """Connections that are opened and closed again, as fast as they are accepted."""

    async def one() -> None:
        while True:
            if (reached := await attacker.connect()) is not None:
                attacker.seen["opened"] += 1
                reached[1].transport.abort()

    await _many(one, FLOOD)


async def foreign_hosts(attacker: Attacker) -> None:
    """What a website would send through a visitor's browser: the website's own name as host."""
    sent = attacker.ask("Once upon a time", host="evil.com")
    while True:
        status = await attacker.send(sent)
        if status is not None and status < "400":
            attacker.seen[ANSWERED] += 1


async def _many(one: Callable[[], Awaitable[None]], count: int) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(_forever(one))


async def _forever(one: Callable[[], Awaitable[None]]) -> None:
    await one()


ATTACKS: dict[str, Callable[[Attacker], Awaitable[None]]] = {
    "1 MB prompts": long_prompt,
    "1 MB prompts, 20 at once": long_prompts,
    "one-byte chunks": one_byte_chunks,
    "slow headers": slow_headers,
    "idle connections": idle_connections,
    "new connections": new_connections,
    "tiny requests": tiny_requests,
    "foreign hosts": foreign_hosts,
}


def attack(name: str, host: str, port: int, model: str, idle: int, seconds: float) -> dict[str, int]:
    """Run one for so long; what the attacker was told, counted."""
    attacker = Attacker(host, port, model, idle)

    async def limited() -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await ATTACKS[name](attacker)

    asyncio.run(limited())
    return dict(attacker.seen)


def nothing() -> None:
    """For a process that is to be ready before it is timed."""
