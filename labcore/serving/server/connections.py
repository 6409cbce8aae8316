"""The connections of a server: how many there may be, how long each may stay silent, how small its pieces.

uvicorn limits none of it: it reads headers of any length for any time, and accepts until the process has no
file descriptors left. `BoundedServer` does, for any app.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections import Counter
from functools import partial
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from labcore.serving.server.accepting import Acceptor
from labcore.serving.server.descriptors import room_for
from labcore.serving.server.errors import ApiError, error_body
from labcore.serving.server.limits import Limits, ensure_large_pieces

MOST_HEAD_BYTES = 2**16  # of a request's line and headers; of what is around the parts of a body
MOST_HEADERS = 128
PIPELINED = 16  # requests of one connection that wait for its running one
UNREAD_S = 60.0  # a client that reads nothing of its answer for so long is cut off
LINGER_S = 10.0  # for the last bytes of a connection that is being closed
SWEEP_S = 0.1
REPORT_S = 10.0  # one line in the log at most in so long a time

log = logging.getLogger(__name__)


class Connections:
    """All of one server. Where there are too many, the longest idle gives way to a new one.

    Idle is who has no complete request that is still to be answered. Those who never had an answer go first:
    so a crowd of silent ones does not push out clients between two requests.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.most = limits.max_connections
        self._open: set[Connection] = set()
        # in the order in which they became idle: who never had an answer, and who did
        self._idle: tuple[dict[Connection, None], dict[Connection, None]] = ({}, {})
        self._seen: Counter[str] = Counter()
        self._reported_s = -REPORT_S

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, connection: Connection) -> bool:
        """Whether there is, or could be made, room for one more."""
        if len(self._open) >= self.most and not self.make_room():
            self.note("refused")
            return False
        self._open.add(connection)
        return True

    def make_room(self) -> bool:
        """Cut off the longest idle one; False: none is idle."""
        oldest = next(iter(self._idle[0]), None) or next(iter(self._idle[1]), None)
        if oldest is None:
            return False
        self.forget(oldest)
        oldest.cut()
        self.note("closed while idle to make room")
        return True

    def rest(self, connection: Connection) -> None:
        """It has nothing to be answered from now on."""
        if connection in self._open:
            self.work(connection)
            self._idle[connection.was_answered][connection] = None

    def work(self, connection: Connection) -> None:
        """It has a complete request."""
        for idle in self._idle:
            idle.pop(connection, None)

    def forget(self, connection: Connection) -> None:
        """It is gone."""
        self._open.discard(connection)
        self.work(connection)

    def note(self, what: str) -> None:
        """Count what would fill the log if each had its line."""
        self._seen[what] += 1

    def sweep(self, now: float) -> None:
        """End what is over its time, and report what happened."""
        for connection in list(self._open):
            connection.ensure_timely(now)
        if self._seen and now >= self._reported_s + REPORT_S:
            told = ", ".join(f"{count:,} {what}" for what, count in self._seen.items())
            log.warning("Connections: %s; %s of at most %s are open.", told, len(self._open), self.most)
            self._seen.clear()
            self._reported_s = now


class Connection(HttpToolsProtocol):
    """One, with the bounds that uvicorn's own does not have."""

    def __init__(self, *arguments: Any, all_of_them: Connections, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._all, self._limits = all_of_them, all_of_them.limits
        self.was_answered = False  # by the app, once
        self._deadline: float | None = None  # of what the client has to send next
        self._unread_since: float | None = None
        self._closing_since: float | None = None
        self._fault: ApiError | None = None
        self._resting = False  # between a whole answer and the first byte of the next request
        self._partial = False  # some of a request is there, and not all
        self._in_head = False
        self._requests = self._head_bytes = self._pieces = self._body_bytes = self._framing_bytes = 0

    # what the transport says

    def connection_made(self, transport: Any) -> None:
        if not self._all.admit(self):
            self.transport = transport
            self._say(ApiError(503, f"{self._all.most} connections are open; try again in a second."))
            return
        super().connection_made(transport)
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.forget(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._resting:
            self._await_request()
        was_in_head, body_before, request = self._in_head, self._body_bytes, self._requests
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # answered as any other request: there are no web sockets
        except httptools.HttpParserError:
            self._all.note("closed for bad HTTP")
            self._say(self._fault or ApiError(400, "The request is no HTTP/1.1; send it as HTTP/1.1."))
        else:
            if self._in_head:
                self._head_bytes += len(data) if was_in_head else 0
            elif self._partial and not was_in_head and self._requests == request:  # all of it is one body's
                self._framing_bytes += len(data) - (self._body_bytes - body_before)
            self._ensure_short()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_since = self.loop.time()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unread_since = None

    # what the parser says

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= PIPELINED:
            raise self._blame(400, f"More than {PIPELINED} requests wait; read the answers first.")
        self._partial = self._in_head = True
        self._requests += 1
        self._head_bytes = self._pieces = self._body_bytes = self._framing_bytes = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) >= MOST_HEADERS:
            raise self._blame(431, f"The request has more than {MOST_HEADERS} headers; send fewer.")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head, self._deadline = False, None
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._pieces += 1
        self._body_bytes += len(body)
        try:
            ensure_large_pieces(self._pieces, self._body_bytes)
        except ApiError as error:
            self._fault = error
            raise
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._partial = False
        super().on_message_complete()
        if self.cycle.response_complete:  # the answer did not wait for the end of the request
            self._rest()
        else:
            self._all.work(self)

    # what the app says

    def on_response_complete(self) -> None:
        waiting, self.was_answered = bool(self.pipeline), not self._partial or self.was_answered
        super().on_response_complete()
        if waiting or self.transport.is_closing():
            return
        if self._partial:
            self._await_request()
        else:
            self._rest()

    # what becomes of it

    def ensure_timely(self, now: float) -> None:
        """End it where the client lets others wait for its place."""
        if self.transport.is_closing():
            self._closing_since = now if self._closing_since is None else self._closing_since
            if now > self._closing_since + LINGER_S:
                self.cut()
        elif self._unread_since is not None and now > self._unread_since + UNREAD_S:
            self.cut()
        elif self._deadline is not None and now > self._deadline:
            if self._in_head and (self.cycle is None or self.cycle.response_complete):
                seconds = self._limits.header_timeout_s
                self._say(ApiError(408, f"The headers were not there after {seconds:g} s; send them faster."))
            else:
                self.transport.close()

    def cut(self) -> None:
        """End it without waiting for what the client has not read."""
        self.transport.abort()

    def _await_request(self) -> None:
        """From now on it has so long for its headers, or for the rest of what was answered already."""
        self._resting = False
        self._deadline = self.loop.time() + self._limits.header_timeout_s
        self._all.rest(self)

    def _rest(self) -> None:
        self._resting = True
        self._deadline = self.loop.time() + self._limits.idle_timeout_s
        self._all.rest(self)

    def _ensure_short(self) -> None:
        if self._head_bytes > MOST_HEAD_BYTES:
            self._say(ApiError(431, f"The headers have more than {MOST_HEAD_BYTES:,} bytes; send fewer."))
        elif self._framing_bytes > MOST_HEAD_BYTES + self._body_bytes:
            self._say(ApiError(400, "The body is less than what is around its parts; send it in one."))

    def _blame(self, status: int, sentence: str) -> ApiError:
        """What the parser is stopped with."""
        self._fault = ApiError(status, sentence)
        return self._fault

    def _say(self, error: ApiError) -> None:
        """The last word: an answer that no app gives."""
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = error_body(error)
            head = (
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(STATUS_LINE[error.status] + head.encode() + body)
        self.transport.close()


class BoundedServer(uvicorn.Server):
    """A server that keeps to the limits of connections, whatever its app. settings: of uvicorn's Config."""

    def __init__(self, app: Any, limits: Limits, **settings: Any) -> None:
        self.bounds = Connections(limits)
        usual: dict[str, Any] = {
            "http": partial(Connection, all_of_them=self.bounds),
            "ws": "none",
            "access_log": False,
            "timeout_keep_alive": limits.idle_timeout_s,
        }
        super().__init__(uvicorn.Config(app, **(usual | settings)))
        self._sweeper: asyncio.Task[None] | None = None
        self._acceptor: Acceptor | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        self.bounds.most = room_for(self.bounds.limits.max_connections)
        accepts = sockets is not None and sys.platform != "win32"  # whose event loop watches no sockets
        await super().startup([] if accepts else sockets)
        if sockets is not None and accepts:
            self._acceptor = Acceptor(sockets, self._new_connection, self._on_want)
        self._sweeper = asyncio.create_task(self._sweep())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, and wait for the connections that are left."""
        if self._acceptor is not None:
            self._acceptor.close()
        try:
            await super().shutdown(sockets)
        finally:
            if self._sweeper is not None:
                self._sweeper.cancel()

    def _new_connection(self) -> asyncio.Protocol:
        make: Any = self.config.http_protocol_class  # as uvicorn's own startup makes them
        connection: asyncio.Protocol = make(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return connection

    def _on_want(self) -> None:
        self.bounds.note("not accepted at once for want of file descriptors")
        self.bounds.make_room()

    async def _sweep(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(SWEEP_S)
            self.bounds.sweep(clock())
