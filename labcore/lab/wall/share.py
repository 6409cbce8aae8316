"""Send this machine's entry to a shared folder or a collector, and take it back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from labcore.errors import LessonError
from labcore.lab.wall.entry import Entry, identity
from labcore.lab.wall.folder import Folder

if TYPE_CHECKING:
    import httpx

TIMEOUT_S = 10
SECRET, CODE = "X-Wall-Secret", "X-Class-Code"


def is_url(to: str) -> bool:
    """Whether a destination is a collector's address, and not a folder."""
    return to.startswith(("http://", "https://"))


def share(entry: Entry, to: str, code: str = "") -> None:
    """Put the entry there. Raises LessonError with what to do; the results on this machine are untouched."""
    if is_url(to):
        _ask("PUT", to, entry, code)
    else:
        Folder(Path(to).expanduser()).put(entry, identity().secret)


def withdraw(to: str, code: str = "") -> bool:
    """Take this machine's entry back; False if there was none. Raises LessonError as `share`."""
    me = identity()
    if is_url(to):
        return _ask("DELETE", to, None, code)
    return Folder(Path(to).expanduser()).remove(me.id, me.secret)


def _ask(verb: str, to: str, entry: Entry | None, code: str) -> bool:
    """One request to a collector; False for 404."""
    import httpx

    me = identity()
    headers = {SECRET: me.secret, CODE: code, "Content-Type": "application/json"}
    body = entry.model_dump_json().encode() if entry else None
    address = f"{to.rstrip('/')}/entries/{me.id}"
    try:
        with httpx.Client(timeout=TIMEOUT_S, trust_env=False) as client:  # a class has no proxy
            answer = client.request(verb, address, content=body, headers=headers)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise LessonError(
            f"No collector answers at {to} ({type(error).__name__}); check the address, and that this "
            "machine is in the same network. Your results are kept here: share again later."
        ) from None
    if answer.status_code == 404 and verb == "DELETE":
        return False
    if answer.is_error:
        raise LessonError(f"The collector refused ({answer.status_code}): {_reason(answer)}")
    return True


def _reason(answer: httpx.Response) -> str:
    """The sentence that it gave; a body that is too long is refused in the form of OpenAI's API."""
    try:
        error = answer.json()["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return "it gave no reason; is this the address of a wall?"
