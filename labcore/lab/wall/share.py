"""Send this machine's entry to a shared folder or a collector, take it back, read everybody's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from pydantic import TypeAdapter, ValidationError

from labcore.errors import LessonError
from labcore.lab.wall.entry import Entry
from labcore.lab.wall.folder import Folder
from labcore.lab.wall.membership import Membership, destination, find, is_url, keep, memberships

TIMEOUT_S = 10
SECRET, CODE = "X-Wall-Secret", "X-Class-Code"
_ENTRIES = TypeAdapter(list[Entry])


def share(entry: Entry, membership: Membership) -> list[str]:
    """Put the entry there; returns the other places that got what had waited for them.

    Raises LessonError when it could not be delivered: then it waits on this machine, and goes along with the
    next share.
    """
    keep(membership.model_copy(update={"pending": entry}))
    try:
        _deliver(entry, membership)
    except LessonError as error:
        sentence = str(error).rstrip(".")
        raise LessonError(f"{sentence}; your entry waits here, and the next share sends it along.") from None
    keep(membership.model_copy(update={"pending": None}))
    return [one.to for one in memberships() if one.pending and _sent_late(one)]


def _sent_late(membership: Membership) -> bool:
    """Send what waited; False if it still waits."""
    assert membership.pending is not None
    try:
        _deliver(membership.pending, membership)
    except LessonError:
        return False
    keep(membership.model_copy(update={"pending": None}))
    return True


def _deliver(entry: Entry, membership: Membership) -> None:
    if is_url(membership.to):
        _ask("PUT", membership, entry.model_dump_json().encode())
    else:
        Folder(Path(membership.to)).put(entry, membership.secret)


def withdraw(to: str, code: str = "") -> bool:
    """Take this machine's entry back, and what waits to be sent there; False if there was none.

    Raises LessonError when nobody answers or it is refused.
    """
    me = find(to)
    if me is None:
        return False
    me = me.model_copy(update={"pending": None, "code": code or me.code})
    keep(me)
    if is_url(me.to):
        return _ask("DELETE", me)
    return Folder(Path(me.to)).remove(me.id, me.secret)


def read(to: str) -> tuple[list[Entry], list[str]]:
    """Everybody's entries, the earliest first, and a sentence for each file that is none.

    Raises LessonError when there is no such folder or no wall at that address.
    """
    to = destination(to)
    if not is_url(to):
        return Folder(Path(to)).entries()
    answer = _request("GET", to, f"{to}/entries")
    try:
        data = answer.json()
        return _ENTRIES.validate_python(data["entries"]), [str(fault) for fault in data["faults"]]
    except (ValidationError, ValueError, KeyError, TypeError):
        raise LessonError(f"{to} answers, but is no class wall; check the address.") from None


def _ask(verb: str, me: Membership, body: bytes | None = None) -> bool:
    """Change one's entry at a collector; False if there is none to delete."""
    headers = [(SECRET, me.secret.encode()), (CODE, me.code.encode()), ("Content-Type", b"application/json")]
    answer = _request(verb, me.to, f"{me.to}/entries/{me.id}", content=body, headers=headers)
    if answer.status_code == 404 and verb == "DELETE":
        return False
    if answer.is_error:
        raise LessonError(f"{me.to} refuses ({answer.status_code}): {_reason(answer)}")
    return True


def _request(
    verb: str, to: str, address: str, *, content: bytes | None = None, headers: Sequence[Any] = ()
) -> httpx.Response:
    try:
        with httpx.Client(timeout=TIMEOUT_S, trust_env=False) as client:  # a class has no proxy
            return client.request(verb, address, content=content, headers=list(headers))
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        raise LessonError(
            f"No collector answers at {to} ({type(error).__name__}); check the address, and that this "
            "machine is in the same network."
        ) from None


def _reason(answer: httpx.Response) -> str:
    """The sentence that it gave; a body that is too long is refused in the form of OpenAI's API."""
    try:
        error = answer.json()["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return "it gave no reason, check that this is the address of a wall."
