"""Accepting connections no faster than leaves time for the answers that run."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

BACKLOG = 1024  # connections that wait to be accepted
BURST = 256  # are accepted at once after a quiet time,
RATE = 500.0  # and so many a second in a storm
BATCH = 16  # in one turn of the event loop
RETRY_S = 0.1  # where the system has no descriptor left

Factory = Callable[[], asyncio.BaseProtocol]


class Allowance:
    """So many at once after a quiet time, and `rate` a second in the long run."""

    def __init__(self, burst: int = BURST, rate: float = RATE) -> None:
        self._burst, self._rate = burst, rate
        self._left, self._at = float(burst), 0.0

    def take(self, most: int, now: float) -> int:
        """How many of `most` may be taken at this time."""
        self._left = min(self._left + (now - self._at) * self._rate, self._burst)
        self._at = now
        taken = min(most, int(self._left))
        self._left -= taken
        return taken

    def give_back(self, count: int) -> None:
        """So many were not needed."""
        self._left += count

    @property
    def wait_s(self) -> float:
        """Until the next batch may be taken."""
        return max(BATCH - self._left, 1) / self._rate


class Acceptor:
    """Of listening sockets, on the loop that runs. asyncio's own accepts thousands in one turn, and logs a
    traceback for each that it cannot accept.

    on_want: called where the system has no file descriptor left.
    """

    def __init__(
        self, sockets: Sequence[socket.socket], factory: Factory, on_want: Callable[[], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sockets, self._factory, self._on_want = tuple(sockets), factory, on_want
        self._allowance = Allowance()
        self._timers: dict[socket.socket, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        for sock in self._sockets:
            sock.setblocking(False)
            sock.listen(BACKLOG)
            self._watch(sock)

    def close(self) -> None:
        """Accept no more; the sockets stay open."""
        for timer in self._timers.values():
            timer.cancel()
        for sock in self._sockets:
            self._loop.remove_reader(sock)

    def _watch(self, sock: socket.socket) -> None:
        self._timers.pop(sock, None)
        self._loop.add_reader(sock, self._accept, sock)

    def _pause(self, sock: socket.socket, seconds: float) -> None:
        self._loop.remove_reader(sock)
        self._timers[sock] = self._loop.call_later(seconds, self._watch, sock)

    def _accept(self, sock: socket.socket) -> None:
        allowed = self._allowance.take(BATCH, self._loop.time())
        for taken in range(allowed):
            try:
                connection = sock.accept()[0]
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                self._allowance.give_back(allowed - taken)
                return
            except OSError:
                self._on_want()
                self._pause(sock, RETRY_S)
                return
            task = self._loop.create_task(self._welcome(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if allowed < BATCH:
            self._pause(sock, self._allowance.wait_s)

    async def _welcome(self, connection: socket.socket) -> None:
        with suppress(OSError):  # it left already
            connection.setblocking(False)
            await self._loop.connect_accepted_socket(self._factory, connection)
