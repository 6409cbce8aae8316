"""What a connection may cost: its headers, its pieces, its silence, its place, and for whom it speaks."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import httpx
import pytest

from labcore.errors import ConfigError
from labcore.serving.server import Limits, accepting, bind, create_app, descriptors, serving
from labcore.serving.server.connections import REPORT_S, BoundedServer, Connections
from labcore.serving.server.limits import FREE_PIECES, BodyLimit
from tests.serving.fakes_server import CountingEngine

pytestmark = pytest.mark.timeout(30)
BODY = {"model": "counting", "prompt": [1, 2, 3], "max_tokens": 4}
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
SOON = Limits(header_timeout_s=0.3, idle_timeout_s=0.3)


@contextmanager
def served(limits: Limits, **settings: Any) -> Iterator[str]:
    engine = CountingEngine(step_s=0.002)
    with serving(create_app(engine, limits=limits, **settings)) as url:  # type: ignore[arg-type]
        yield url


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(SOON, allowed_hosts=["lab.example.org"]) as address:
        yield address


def opened(url: str) -> socket.socket:
    parts = httpx.URL(url)
    return socket.create_connection((parts.host, parts.port), timeout=5)


def rest_of(connection: socket.socket) -> bytes:
    """All that comes until the server ends the connection."""
    told = b""
    with suppress(ConnectionResetError):  # it was ended with bytes of ours unread
        while part := connection.recv(65536):
            told += part
    return told


def answer_to(url: str, sent: bytes) -> bytes:
    with opened(url) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):  # the answer came before the end of the request
            connection.sendall(sent)
        return rest_of(connection)


def is_alive(url: str) -> bool:
    return httpx.post(f"{url}/v1/completions", json=BODY).status_code == 200


# Pieces


def test_a_body_in_one_byte_chunks_is_refused(url: str) -> None:
    told = answer_to(url, CHUNKED + b"1\r\nx\r\n" * 40_000)
    assert told.startswith(b"HTTP/1.1 400")
    assert b"send it in larger ones." in told
    assert is_alive(url)


def test_a_body_in_chunks_of_the_usual_size_is_read(url: str) -> None:
    sent = json.dumps(BODY | {"user": "x" * 100_000}).encode()
    pieces = (sent[at : at + 100] for at in range(0, len(sent), 100))
    kind = {"Content-Type": "application/json"}
    assert httpx.post(f"{url}/v1/completions", content=pieces, headers=kind).status_code == 200


def test_a_short_body_behind_a_long_one_is_no_fault(url: str) -> None:
    """On one connection, headers and body in one piece: bytes of the first do not count for the second."""
    with httpx.Client() as client:
        for length in (900_000, 200_000, 100_000, 10):
            sent = json.dumps(BODY | {"user": "x" * length})
            kind = {"Content-Type": "application/json"}
            assert client.post(f"{url}/v1/completions", content=sent, headers=kind).status_code == 200


@pytest.mark.parametrize(
    "around", [b"1;" + b"x" * 200_000 + b"\r\nx\r\n", b"1\r\nx\r\n0\r\nlong: " + b"x" * 200_000]
)
def test_what_is_around_a_body_may_not_be_more_than_the_body(url: str, around: bytes) -> None:
    with opened(url) as connection:
        connection.sendall(CHUNKED)
        time.sleep(0.02)  # so that it comes in a piece of its own
        connection.sendall(around)
        assert rest_of(connection).startswith(b"HTTP/1.1 400")


def test_pieces_are_counted_whatever_server_reads_them() -> None:
    sent = iter([{"type": "http.request", "body": b"x", "more_body": True}] * (FREE_PIECES + 100))
    read, told = 0, []

    async def receive() -> dict[str, Any]:
        nonlocal read
        read += 1
        return next(sent)

    async def send(message: Any) -> None:
        told.append(message)

    async def ask() -> None:
        await BodyLimit(None, Limits())({"type": "http", "headers": []}, receive, send)  # type: ignore[arg-type]

    asyncio.run(ask())
    assert told[0]["status"] == 400
    assert (b"connection", b"close") in told[0]["headers"]
    assert read < FREE_PIECES + 100


def test_an_overlong_body_is_not_read_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labcore.serving.server.limits.PATIENCE_S", 0.05)
    told = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"x" * 10, "more_body": True}

    async def send(message: Any) -> None:
        told.append(message)

    async def ask() -> None:
        limit = BodyLimit(None, Limits(max_body_bytes=15))  # type: ignore[arg-type]
        await limit({"type": "http", "headers": []}, receive, send)

    asyncio.run(ask())
    assert told[0]["status"] == 413


# Headers


def test_headers_that_come_a_byte_at_a_time_are_not_waited_for(url: str) -> None:
    with opened(url) as connection:
        connection.settimeout(0.02)
        begin, told = time.monotonic(), b""
        for letter in b"GET /health HTTP/1.1\r\n" + b"a: b\r\n" * 100:
            connection.send(bytes([letter]))
            try:
                told = connection.recv(1000)
                break
            except TimeoutError:
                assert time.monotonic() < begin + 10
    assert told.startswith(b"HTTP/1.1 408")
    assert b"after 0.3 s" in told


@pytest.mark.parametrize("before", [b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"])
def test_a_connection_that_says_nothing_is_closed(url: str, before: bytes) -> None:
    told = answer_to(url, before)
    assert told.startswith(b"HTTP/1.1 200") if before else told == b""


def test_what_was_refused_is_not_read_for_ever(url: str) -> None:
    evil = b"POST /v1/completions HTTP/1.1\r\nHost: evil.com\r\nContent-Length: 100\r\n\r\n{"
    assert answer_to(url, evil).startswith(b"HTTP/1.1 421")  # and ended


@pytest.mark.parametrize(
    "head", [b"a: b\r\n" * 200, b"a: " + b"x" * 300_000, b"x" * 300_000]
)  # fmt: skip
def test_long_headers_are_refused(url: str, head: bytes) -> None:
    told = answer_to(url, b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + head)
    assert told.startswith(b"HTTP/1.1 431")
    assert json.loads(told.partition(b"\r\n\r\n")[2])["error"]["message"].endswith("send fewer.")


def test_requests_that_wait_behind_another_are_bounded(url: str) -> None:
    one = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert answer_to(url, one * 4).count(b"HTTP/1.1 200") == 4
    assert b"read the answers first." in answer_to(url, one * 10_000)


# Places


def test_idle_connections_give_way_to_new_ones() -> None:
    with served(Limits(max_connections=4)) as url, ExitStack() as stack:
        crowd = [stack.enter_context(opened(url)) for _ in range(12)]
        assert is_alive(url)
        for connection in crowd[:8]:
            assert rest_of(connection) == b""
        crowd[-1].sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert rest_of(crowd[-1]).startswith(b"HTTP/1.1 200")


def test_who_had_an_answer_stays_before_who_never_asked() -> None:
    with served(Limits(max_connections=4)) as url, opened(url) as known, ExitStack() as stack:
        for _ in range(2):
            known.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            told = known.recv(1000)
            while not told.endswith(b"}"):
                told += known.recv(1000)
            assert told.startswith(b"HTTP/1.1 200")
            crowd = [stack.enter_context(opened(url)) for _ in range(12)]
            assert rest_of(crowd[0]) == b""


def test_small_writes_are_sent_at_once() -> None:
    with bind("127.0.0.1", 0) as listening:  # asyncio looks at the protocol, which 0 does not name
        assert listening.proto == socket.IPPROTO_TCP


def test_a_body_that_is_on_its_way_gives_way_too() -> None:
    with served(Limits(max_connections=2)) as url, ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(opened(url)).sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
        assert is_alive(url)


def test_running_answers_keep_their_places() -> None:
    long = json.dumps(BODY | {"max_tokens": 10_000, "stream": True}).encode()
    with served(Limits(max_connections=2)) as url, ExitStack() as stack:
        for _ in range(2):
            connection = stack.enter_context(opened(url))
            connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(long) + long)
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        told = answer_to(url, b"")
        assert told.startswith(b"HTTP/1.1 503")
        assert b"2 connections are open" in told
        connection.close()
        while b"503" in answer_to(url, b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n"):
            time.sleep(0.01)


class Silent:
    """A transport whose other end reads nothing."""

    aborted = False

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        self.aborted = True

    def get_extra_info(self, _: str) -> None:
        return None


def test_a_client_that_reads_nothing_is_cut_off() -> None:
    async def cut_after(seconds: float) -> bool:
        server = BoundedServer(create_app(CountingEngine()), Limits())  # type: ignore[arg-type]
        server.config.load()
        connection = server.config.http_protocol_class(server.config, server.server_state, {})
        transport = Silent()
        connection.connection_made(transport)  # type: ignore[arg-type]
        connection._deadline = None
        connection.pause_writing()
        server.bounds.sweep(connection.loop.time() + seconds)
        return transport.aborted

    assert not asyncio.run(cut_after(50))
    assert asyncio.run(cut_after(70))


# File descriptors and the log


def test_connections_are_fewer_than_file_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    limits, given = [200, 1000], []
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: given.append(pair))
    monkeypatch.setattr(descriptors, "open_descriptors", lambda: 8)
    assert descriptors.room_for(300) == 300
    assert descriptors.room_for(5000) == 800
    assert given == [(500, 1000), (1000, 1000)]
    limits[:] = [100, 100]
    assert descriptors.room_for(5000) == descriptors.FEWEST


class Full:
    """A listening socket of a process that has no descriptor left."""

    source: socket.socket
    accepted = 0

    def accept(self) -> None:
        self.accepted += 1
        raise OSError(errno.EMFILE, "too many open files")

    def setblocking(self, _: bool) -> None: ...

    def listen(self, _: int) -> None: ...

    def fileno(self) -> int:
        return self.source.fileno()


def test_what_cannot_be_accepted_is_one_line_with_a_count(caplog: pytest.LogCaptureFixture) -> None:
    server = BoundedServer(None, Limits())
    for now in (0.0, 1.0, REPORT_S + 1):
        for _ in range(1000):
            server._on_want()
        server.bounds.sweep(now)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert "1,000 not accepted at once for want of file descriptors" in lines[0]
    assert "2,000 not accepted" in lines[1]


def test_without_descriptors_accepting_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepting, "RETRY_S", 0.02)
    full, wants = Full(), []

    async def accept_for_a_while() -> None:
        full.source, other = socket.socketpair()
        with full.source, other:
            other.send(b"x")  # so that it stays ready
            acceptor = accepting.Acceptor([full], asyncio.Protocol, lambda: wants.append(1))  # type: ignore[list-item]
            await asyncio.sleep(0.1)
            acceptor.close()

    asyncio.run(accept_for_a_while())
    assert 2 <= full.accepted == len(wants) <= 6


def test_a_storm_of_connections_is_accepted_at_a_rate() -> None:
    allowance = accepting.Allowance(burst=100, rate=10)
    assert [allowance.take(60, 0.0), allowance.take(60, 0.0), allowance.take(60, 0.0)] == [60, 40, 0]
    assert allowance.take(60, 1.0) == 10
    allowance.give_back(4)
    assert allowance.take(60, 1.0) == 4
    assert allowance.take(600, 1000.0) == 100


def test_bad_http_is_counted_not_logged_line_by_line(url: str, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(5):
        assert answer_to(url, b"\x16\x03\x01 nonsense\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert len(caplog.records) <= 1


def test_the_room_of_one_that_left_is_free_again() -> None:
    connections = Connections(Limits(max_connections=1))
    first, second = object(), object()
    assert connections.admit(first)  # type: ignore[arg-type]
    assert not connections.admit(second)  # type: ignore[arg-type]
    connections.forget(first)  # type: ignore[arg-type]
    assert connections.admit(second)  # type: ignore[arg-type]


# For whom it speaks


def test_foreign_hosts_and_pages_are_refused_in_the_form_of_the_server(url: str) -> None:
    ask = f"{url}/v1/models"
    assert (
        httpx.get(ask).status_code == httpx.get(ask, headers={"Host": "lab.example.org"}).status_code == 200
    )
    for status, header, value in ((421, "Host", "evil.com:8000"), (403, "Origin", "https://evil.com")):
        answer = httpx.get(ask, headers={header: value})
        assert answer.status_code == status
        assert "evil.com" in answer.json()["error"]["message"]
        assert answer.json()["error"]["message"].endswith(".")


@pytest.mark.parametrize("lines", [b"", b"Host: localhost\r\nHost: evil.com\r\n", b"Host: \r\n"])
def test_a_request_has_one_host(url: str, lines: bytes) -> None:
    assert answer_to(url, b"GET /v1/models HTTP/1.0\r\n" + lines + b"\r\n").startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_what_a_page_can_post_anywhere_drives_nothing(url: str, kind: str) -> None:
    headers = {"Content-Type": kind} if kind else {}
    answer = httpx.post(f"{url}/v1/completions", content=json.dumps(BODY), headers=headers)
    assert answer.status_code == 415
    assert "application/json" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/health/", "/v1/completions/", "/metrics/"])
def test_a_last_slash_redirects_nowhere(url: str, path: str) -> None:
    answer = httpx.get(url + path)
    assert answer.status_code == 404
    assert "location" not in answer.headers


@pytest.mark.parametrize("host", ["http://a.org", "a.org:80", "*.a.org", "", "a b"])
def test_an_allowed_host_is_a_name(host: str) -> None:
    with pytest.raises(ConfigError, match="is no host"):
        create_app(CountingEngine(), allowed_hosts=[host])  # type: ignore[arg-type]
