"""Which hosts and pages a server answers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from labcore.serving.hosts import HostCheck, host_is_allowed, host_of, origin_is_allowed

LOOPBACK = ("127.0.0.1", "127.8.0.1", "::1", "::ffff:127.0.0.1")


@pytest.mark.parametrize("bound", LOOPBACK)
@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:80", "a.localhost", "127.0.0.1:8000", "127.0.0.2", "[::1]:8000", "localhost."],
)
def test_loopback_answers_to_its_own_names(bound: str, host: str) -> None:
    assert host_is_allowed(host, bound)


@pytest.mark.parametrize("bound", LOOPBACK)
@pytest.mark.parametrize(
    "host",
    [
        "evil.com", "evil.com:8000", "localhost.evil.com", "127.0.0.1.evil.com", "evillocalhost", "printer",
        "192.168.1.5", "[::2]:8000", "", None, "localhost:port", "localhost/evil.com", "a@localhost",
        "localhost,evil.com", "[::1", "::1 evil.com", "printer.local",
    ],
)  # fmt: skip
def test_loopback_answers_to_no_other(bound: str, host: str | None) -> None:
    assert not host_is_allowed(host, bound)


@pytest.mark.parametrize("bound", ["192.168.1.5", "0.0.0.0", "::", "testserver"])
def test_an_open_address_answers_to_what_no_website_can_be_called(bound: str) -> None:
    for host in (
        "192.168.1.5:8000",
        "[fe80::1]:8000",
        "box",
        "box.local:80",
        "a.svc.cluster.local",
        "localhost",
    ):
        assert host_is_allowed(host, bound), host
    for host in ("evil.com", "192.168.1.5.evil.com", "local.evil.com", None, ""):
        assert not host_is_allowed(host, bound), host


def test_names_can_be_allowed_alone_by_their_ending_or_all() -> None:
    assert host_is_allowed("Lab.example.org:443", "127.0.0.1", ["lab.example.org"])
    assert not host_is_allowed("evil.lab.example.org", "127.0.0.1", ["lab.example.org"])
    assert host_is_allowed("b.lab.example.org", "127.0.0.1", [".lab.example.org"])
    assert not host_is_allowed("evillab.example.org", "127.0.0.1", [".lab.example.org"])
    assert host_is_allowed("evil.com", "127.0.0.1", ["*"])
    assert host_is_allowed("[2001:db8::1]:8000", "127.0.0.1", ["2001:db8::1"])


@pytest.mark.parametrize(
    ("origin", "host", "right"),
    [
        (None, "localhost:8000", True),
        ("http://localhost:8888", "127.0.0.1:8000", True),
        ("http://127.0.0.1:8000", "127.0.0.1:8000", True),
        ("http://192.168.1.5", "192.168.1.5:8000", True),
        ("https://lab.example.org", "localhost", True),
        ("http://evil.com", "localhost:8000", False),
        ("http://6.6.6.6", "192.168.1.5:8000", False),  # a website may well be an address
        ("http://localhost", "192.168.1.5:8000", False),
        ("null", "localhost:8000", False),
        ("", "localhost:8000", False),
        ("http://[::1", "localhost:8000", False),
        ("http://localhost@evil.com", "localhost", False),
    ],
)
def test_pages_of_others_may_not_use_the_server(origin: str | None, host: str, right: bool) -> None:
    assert origin_is_allowed(origin, host, ["lab.example.org"]) is right


def test_every_page_may_where_all_hosts_are_allowed() -> None:
    assert origin_is_allowed("http://evil.com", "localhost", ["*"])


@pytest.mark.parametrize(
    ("header", "host"), [("A.b.:1", "a.b"), ("[::1]", "::1"), (":80", None), (".", None)]
)
def test_a_host_without_its_port(header: str, host: str | None) -> None:
    assert host_of(header) == host


@pytest.mark.parametrize(
    ("reached", "keyed", "status"), [("10.0.0.5", True, 200), ("10.0.0.5", False, 421), ("::1", True, 421)]
)
def test_a_key_allows_any_name_but_on_loopback(reached: str, keyed: bool, status: int) -> None:
    told: list[int] = []

    def answer(status: int, sentence: str = "") -> Any:
        async def app(*_: Any) -> None:
            told.append(status)

        return app

    check = HostCheck(answer(200), answer, keyed=keyed)
    scope = {"type": "http", "headers": [(b"host", b"gpu.example.org")], "server": (reached, 8000)}
    asyncio.run(check(scope, None, None))  # type: ignore[arg-type]
    assert told == [status]
