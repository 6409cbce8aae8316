"""Which `Host` and `Origin` headers a server answers, so that no website can drive it through a browser.

A website whose name is pointed at this machine after it was loaded (DNS rebinding) sends its own name as
`Host`; one that posts a form or a text to another server sends its own address as `Origin`. Needs no package,
so that every server of the lab can use it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from labcore.errors import ConfigError

SHOWN = 60  # characters of a header that a refusal repeats
ANY = "*"  # allows every host
# Names that no website can register: they are reserved for the machine itself and for local networks.
LOCAL_ENDINGS = (".localhost", ".local", ".internal", ".home.arpa", ".cluster.local", ".svc")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Answer = Callable[[int, str], App]


def host_is_allowed(host_header: str | None, bound_address: str, allowed: Iterable[str] = ()) -> bool:
    """Whether a request may be answered that asks for this host.

    host_header: such as "localhost:8000", "[::1]:8000"; None: there was none. bound_address: the IP address
    that the request came in at, or that the server listens on. allowed: more host names, without ports;
    ".example.org" stands for all below it, "*" for every host. On loopback only loopback's own names are
    answered. Elsewhere a server does not know all its names: addresses, names without a dot and names that
    are local by their ending are answered, because no website can have one of them.
    """
    allowed = tuple(allowed)
    if ANY in allowed:
        return True
    name = host_of(host_header)
    if name is None:
        return False
    if is_loopback(name) or _is_listed(name, allowed):
        return True
    if is_loopback(bound_address):
        return False
    return _address(name) is not None or "." not in name or name.endswith(LOCAL_ENDINGS)


def origin_is_allowed(origin: str | None, host_header: str | None, allowed: Iterable[str] = ()) -> bool:
    """Whether a page from this origin may use the server that it asks as host_header.

    None: no browser sent it, or it is the server's own page. Ports do not matter: other servers of this
    machine are no strangers. allowed: as of `host_is_allowed`.
    """
    allowed = tuple(allowed)
    if origin is None or ANY in allowed:
        return True
    try:
        page = host_of(urlsplit(origin).netloc)
    except ValueError:
        return False
    asked = host_of(host_header)
    if page is None or asked is None:
        return False
    return page == asked or _is_listed(page, allowed) or (is_loopback(page) and is_loopback(asked))


def host_of(header: str | None) -> str | None:
    """The name or address in a Host header, in lower case, without its port. None: it holds none."""
    if not header or any(letter in header for letter in " \t/\\@?#,"):
        return None
    try:
        parts = urlsplit(f"//{header}")
        _ = parts.port  # raises for one that is no number
        return (parts.hostname or "").removesuffix(".") or None
    except ValueError:
        return None


def ensure_names(allowed: Iterable[str]) -> None:
    """Raises ConfigError for what can be no entry of `allowed`."""
    for one in allowed:
        name = one.strip("[]").removeprefix(".")
        if one == ANY or _address(name) is not None:
            continue
        if ANY in name or host_of(name) != name.lower().removesuffix("."):
            raise ConfigError(
                f"{one!r} is no host; give a name alone, such as lab.example.org, or .example.org."
            )


def is_loopback(name: str) -> bool:
    """Whether a name or an address can only mean this machine itself."""
    address = _address(name)
    if address is None:
        return name == "localhost" or name.endswith(".localhost")
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _is_listed(name: str, allowed: Iterable[str]) -> bool:
    for one in allowed:
        known = one.lower().strip("[]").removesuffix(".")
        if name == known or (known.startswith(".") and name.endswith(known)):
            return True
    return False


class HostCheck:
    """Answers requests of foreign hosts (421) and of foreign pages (403) itself; an ASGI middleware.

    answer: from a status and a sentence to the app that sends it, so that each server keeps its own form.
    keyed: the server asks for a key, which no website has; then any name will do where it is not on loopback.
    Raises ConfigError for an allowed host that is none.
    """

    def __init__(self, app: App, answer: Answer, allowed: Iterable[str] = (), keyed: bool = False) -> None:
        self._app, self._answer, self._allowed, self._keyed = app, answer, tuple(allowed), keyed
        ensure_names(self._allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fault = self._fault(scope) if scope["type"] in ("http", "websocket") else None
        app = self._app if fault is None else self._answer(*fault)
        await app(scope, receive, send)

    def _fault(self, scope: Scope) -> tuple[int, str] | None:
        """The status and the sentence of a refusal; None: there is nothing against it."""
        hosts = _values(scope, b"host")
        host = hosts[0] if hosts else None
        if len(hosts) != 1 or (host_of(host) is None and ANY not in self._allowed):
            return 400, "A request needs exactly one Host header, with a name or an address; send one."
        reached = (scope.get("server") or ("", 0))[0]
        known = host_is_allowed(host, reached, self._allowed)
        if not known and (is_loopback(reached) or not self._keyed):
            return 421, f"{_shown(host)} is no name of this server; --allowed-host NAME makes it one."
        for origin in _values(scope, b"origin"):
            if not origin_is_allowed(origin, host, self._allowed):
                return (
                    403,
                    f"Pages of {_shown(origin)} may not use this server; --allowed-host NAME lets one.",
                )
        return None


def _shown(header: str | None) -> str:
    return ascii((header or "")[:SHOWN])


def _values(scope: Scope, header: bytes) -> list[str]:
    return [value.decode("latin-1") for name, value in scope["headers"] if name == header]
