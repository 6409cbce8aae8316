"""A server that stops well, and one that runs beside a notebook or a test."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from fastapi import FastAPI

from labcore.errors import LabError
from labcore.serving.server.accepting import BACKLOG
from labcore.serving.server.connections import BoundedServer
from labcore.serving.server.service import Service

NEIGHBOURS = 100  # ports that are tried to name a free one
FAREWELL_S = 5  # for the last bytes to reach clients that read slowly
POLL_S = 0.01

log = logging.getLogger(__name__)


class ServerError(LabError):
    """A server cannot listen where it was told to, or does not start or stop."""


class Server(BoundedServer):
    """Told to stop, it refuses new requests (503), lets those that run finish, and aborts them after grace_s.

    Told a second time, it aborts at once. How many it had to abort goes to the log.
    """

    def __init__(self, app: FastAPI, **settings: Any) -> None:
        self.service: Service = app.state.service
        usual: dict[str, Any] = {"lifespan": "on", "timeout_graceful_shutdown": FAREWELL_S}
        super().__init__(app, self.service.limits, **(usual | settings))
        self._hurried = False

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """While the engine is drained the door stays open, so that who knocks is told why."""
        if aborted := await self.service.engine.drain(self.service.limits.grace_s):
            log.warning("Answers that were ended before they were finished: %d.", aborted)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal stops, the second hurries, the third does not wait for clients any more.

        A server that was told to end by SIGTERM, and does, ends with code 0.
        """
        if self.should_exit and not self._hurried:
            self._hurried = True
            self.service.engine.hurry()
        elif sig == signal.SIGTERM and not self.should_exit:
            self.should_exit = True
        else:
            super().handle_exit(sig, frame)


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0: any free one.

    Raises ServerError, which names a free port where this one is taken.
    """
    if not 0 <= port <= 65535:  # the system's look-up would take it modulo 65536
        raise ServerError(f"{port} is no port; give --port with 1 to 65535, or 0 for any free one.")
    try:
        return _listen(host, port)
    except socket.gaierror as error:
        raise ServerError(f"There is no host {host!r} ({error.strerror}); give --host 127.0.0.1.") from None
    except OSError as error:
        raise ServerError(_mend(host, port, error)) from None


def _listen(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    # with its protocol named, asyncio sends at once; else a second small write may wait 40 ms for the first
    sock = socket.socket(family, kind, protocol or socket.IPPROTO_TCP)
    try:
        if os.name == "posix":  # elsewhere this would let two servers share a port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _mend(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        free = _next_free(host, port)
        return f"Port {port} of {host} is taken; give --port {free}, which is free."
    if error.errno == errno.EACCES:
        return f"Port {port} is reserved for the administrator; give --port 8000 or another above 1023."
    return f"{host} port {port} cannot be listened on ({error.strerror}); give --host 127.0.0.1."


def _next_free(host: str, port: int) -> int:
    for number in [*range(port + 1, min(port + NEIGHBOURS, 65536)), 0]:
        try:
            with _listen(host, number) as sock:
                return int(sock.getsockname()[1])
        except OSError:
            continue
    return 0


def url_of(sock: socket.socket) -> str:
    """Where a socket is asked."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if sock.family == socket.AF_INET6 else f"http://{host}:{port}"


@contextmanager
def serving(
    app: FastAPI, *, host: str = "127.0.0.1", port: int = 0, timeout_s: float = 30.0
) -> Iterator[str]:
    """Serve an app on a thread while the block runs; gives its address, such as http://127.0.0.1:40123.

    port 0: any free one. At the end what runs is finished or aborted (`Limits.grace_s`), and the thread is
    gone. Raises ServerError where the server does not answer within timeout_s, or does not stop.
    """
    sock = bind(host, port)
    server = Server(app, log_level="warning", log_config=None)
    thread = threading.Thread(target=server.run, args=([sock],), name="labcore-server", daemon=True)
    thread.start()
    try:
        _wait_until_started(server, thread, timeout_s)
        yield url_of(sock)
    finally:
        server.should_exit = True
        thread.join(server.service.limits.grace_s + 2 * FAREWELL_S + timeout_s)
        sock.close()
    if thread.is_alive():
        raise ServerError(f"The server at port {port} did not stop; end this Python process.")


def _wait_until_started(server: Server, thread: threading.Thread, timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while not server.started:
        if not thread.is_alive() or time.monotonic() > end:
            raise ServerError(f"The server did not start within {timeout_s:g} s; its log says why.")
        time.sleep(POLL_S)
