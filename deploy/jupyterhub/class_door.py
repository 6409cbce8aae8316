"""Who gets in, and where the hub listens: by default this machine alone, and nobody without the class code.

Standard library only, as `labcore_class`.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

PORT = 8000
SHORTEST = 6  # characters of a code that somebody chose
_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"  # none that is read for another


@dataclass(frozen=True)
class Door:
    """Where the hub listens. cert, key: files of TLS, empty without. own_names: the address whose subdomains
    are the learners' own, empty where all share one origin."""

    bind: str
    cert: str = ""
    key: str = ""
    own_names: str = ""

    @property
    def here_only(self) -> bool:
        """Whether no other machine reaches it."""
        return _loopback(_host(self.bind))

    @property
    def address(self) -> str:
        """What learners type."""
        if self.own_names:
            return self.own_names
        parts = urlsplit(self.bind)
        host = parts.hostname or ""
        if host in ("0.0.0.0", "::"):
            host = socket.gethostname() if self.cert else _address_of_this_machine()
        return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{parts.port}"


def chosen_door(environ: Mapping[str, str] = os.environ) -> Door:
    """As LABCORE_CLASS_BIND, _TLS_CERT, _TLS_KEY and _SUBDOMAIN_HOST say: without any of them the loopback,
    with TLS every address. Raises ValueError, one sentence, where they do not fit together."""
    cert, key = (environ.get(f"LABCORE_CLASS_TLS_{part}", "") for part in ("CERT", "KEY"))
    if bool(cert) != bool(key):
        raise ValueError(
            "TLS takes both LABCORE_CLASS_TLS_CERT and LABCORE_CLASS_TLS_KEY; give the other too."
        )
    for file in filter(None, (cert, key)):
        if not os.access(file, os.R_OK):
            raise ValueError(
                f"{file} cannot be read; LABCORE_CLASS_TLS_CERT and _KEY name files in PEM form."
            )
    usual = f"https://0.0.0.0:{PORT}" if cert else f"http://127.0.0.1:{PORT}"
    bind = _checked(environ.get("LABCORE_CLASS_BIND") or usual, bool(cert))
    return Door(bind, cert, key, _names(environ.get("LABCORE_CLASS_SUBDOMAIN_HOST", "").rstrip("/")))


def _checked(bind: str, tls: bool) -> str:
    """With a port. Raises ValueError."""
    try:
        parts = urlsplit(bind)
        host, port = parts.hostname, parts.port or PORT
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https"):
        raise ValueError(f"LABCORE_CLASS_BIND={bind} is no address such as http://127.0.0.1:{PORT}.")
    if tls != (parts.scheme == "https"):
        raise ValueError(
            f"LABCORE_CLASS_BIND={bind} does not fit: an address begins with https:// where "
            "LABCORE_CLASS_TLS_CERT and LABCORE_CLASS_TLS_KEY are given, and with http:// where they are not."
        )
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}{parts.path}"


def _names(address: str) -> str:
    """Empty, or with a name that can have subdomains. Raises ValueError."""
    if address and (not address.startswith(("http://", "https://")) or _is_number(_host(address))):
        raise ValueError(
            f"LABCORE_CLASS_SUBDOMAIN_HOST={address} is no address with a name, such as https://example.org."
        )
    return address


def _host(address: str) -> str:
    return urlsplit(address).hostname or ""


def _loopback(host: str) -> bool:
    return host == "localhost" or (_is_number(host) and ip_address(host).is_loopback)


def _is_number(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _address_of_this_machine() -> str:
    """The one that others in the room use."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # a documentation address: nothing is sent, a route is chosen
        except OSError:
            return socket.gethostname()
        return str(probe.getsockname()[0])


def code(file: Path, given: str = "") -> str:
    """What a new learner must know: `given`, else what the file holds, else a new code that the file holds
    from now on, for nobody but its owner. Raises ValueError for one that is too easy to guess."""
    wanted = given.strip()
    if not wanted:
        try:
            with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as new:
                new.write("".join(secrets.choice(_LETTERS) for _ in range(10)) + "\n")
        except FileExistsError:
            pass
        wanted = file.read_text(encoding="utf-8").strip()
    if len(wanted) < SHORTEST:
        raise ValueError(
            f"The code {wanted!r} is too easy to guess; give {SHORTEST} characters or more, or none: then "
            f"one is made and kept in {file}."
        )
    return wanted


def invitation(door: Door, word: str, instructors: frozenset[str] = frozenset(), their_word: str = "") -> str:
    """What the instructor reads at the start: how to join on one line, and a line for each thing to know."""
    lines = [
        f"To join: open {door.address}, choose a name and a password, and give the class code {word} "
        "(at the first login only)."
    ]
    if instructors:
        who = ", ".join(sorted(instructors))
        lines.append(f"Who sees and ends servers ({who}) gives {their_word} in place of the class code.")
    if door.here_only and door.cert:
        lines.append("Only this machine reaches it, as LABCORE_CLASS_BIND says.")
    elif door.here_only:
        lines.append(
            "Only this machine reaches it. For a class: LABCORE_CLASS_TLS_CERT and LABCORE_CLASS_TLS_KEY, "
            f"or, in a network that you trust, LABCORE_CLASS_BIND=http://0.0.0.0:{PORT}."
        )
    elif not door.cert:
        lines.append(
            "WARNING: without TLS, everybody in this network can read passwords, the class code and all "
            "work; give LABCORE_CLASS_TLS_CERT and LABCORE_CLASS_TLS_KEY."
        )
    if not door.own_names:
        lines.append(
            "WARNING: all learners share one origin, so a page or notebook of one, opened by another, can "
            "act as that other; LABCORE_CLASS_SUBDOMAIN_HOST gives each its own (see deploy/jupyterhub)."
        )
    return "\n".join(lines)
