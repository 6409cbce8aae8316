"""Who this learner is in each class: a random id, and a secret that lets nobody else change the entry.

Kept in `wall.json` beside the results, readable, and for nobody but the user. What could not be sent waits
there, too.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from pathlib import Path
from typing import Annotated
from uuid import UUID, uuid4

from pydantic import Field, TypeAdapter

from labcore.errors import LessonError
from labcore.lab.results import WALL_FILE, folder, write_whole
from labcore.lab.wall.entry import Entry, Strict, first_fault


class Membership(Strict):
    """One class: where it shares, its code, who this learner is there, and an entry that waits to be sent."""

    to: str
    code: str = ""
    id: UUID
    secret: Annotated[str, Field(min_length=20, max_length=200)]
    pending: Entry | None = None


_FILE = TypeAdapter(dict[str, list[Membership]])


def path() -> Path:
    """The file that holds the memberships."""
    return folder() / WALL_FILE


def is_url(to: str) -> bool:
    """Whether a destination is a collector's address, and not a folder."""
    return to.startswith(("http://", "https://"))


def destination(to: str) -> str:
    """One spelling for one place: no slash at the end of an address, folders in full."""
    return to.rstrip("/") if is_url(to) else str(Path(to).expanduser().resolve())


def memberships() -> list[Membership]:
    """All classes of this learner. Raises LessonError when the file is damaged or cannot be read."""
    try:
        return _FILE.validate_json(path().read_bytes())["classes"]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise LessonError(f"{path()} cannot be read ({error.strerror}); mend its permissions.") from None
    except (ValueError, KeyError) as error:
        why = first_fault(error) if isinstance(error, ValueError) else "it has no classes"
        raise LessonError(
            f"{path()} is damaged ({why}); mend it, or delete it to share as somebody new."
        ) from None


def find(to: str) -> Membership | None:
    """The membership of the class that shares there, or None. Raises LessonError as `memberships`."""
    return next((one for one in memberships() if one.to == destination(to)), None)


def join(to: str, code: str = "") -> Membership:
    """The membership of a class, a new one if there is none; nothing is written.

    A collector that moved to another address is the same class if it has the same code. Raises LessonError as
    `memberships`.
    """
    to, known = destination(to), memberships()
    same = [one for one in known if one.to == to] or [one for one in known if code and one.code == code]
    if same:
        return same[-1].model_copy(update={"to": to, "code": code or same[-1].code})
    return Membership(to=to, code=code, id=uuid4(), secret=secrets.token_urlsafe(24))


def keep(membership: Membership) -> None:
    """Write a membership, in place of the one for the same place. Raises LessonError where that fails."""
    others = [one for one in memberships() if one.to != membership.to]
    data = {"classes": [one.model_dump(mode="json") for one in (*others, membership)]}
    write_whole(path(), json.dumps(data, indent=2, ensure_ascii=False) + "\n", private=True)


def secret_hash(secret: str) -> str:
    """What is kept of a secret where entries lie."""
    return hashlib.sha256(secret.encode()).hexdigest()
