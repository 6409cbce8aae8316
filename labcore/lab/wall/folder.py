"""A folder of entries, one file for each learner: shared on a network disk, or kept by the collector."""

from __future__ import annotations

import errno
import hmac
import json
import os
import stat
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import UUID

from labcore.errors import LessonError
from labcore.lab.results import now, write_whole
from labcore.lab.wall.entry import Entry, first_fault
from labcore.lab.wall.membership import secret_hash

MOST = 500  # entries of one class
MOST_BYTES = 2**18  # of one entry: twice what one can have in it
MOST_OF_OWNER = 100  # files of one user of the machine, who may be a whole class behind a network disk
_FLAGS = ("O_RDONLY", "O_NOFOLLOW", "O_NONBLOCK", "O_BINARY")  # not every system has all
_PLAIN = sum(getattr(os, flag, 0) for flag in _FLAGS)
_JUNK = (ValueError, OSError, KeyError, TypeError, AttributeError, RecursionError)


class NotYours(LessonError):
    """An entry that somebody else shared."""


class WallFull(LessonError):
    """More learners than a class has."""


@dataclass(frozen=True)
class Folder:
    """Entries as `<id>.json`; each file is written whole, so that thirty may share at once."""

    path: Path

    def put(self, entry: Entry, secret: str) -> None:
        """Add an entry, or replace the one with the same id and secret.

        Raises NotYours, WallFull, or LessonError where the folder is not there, refuses or is full.
        """
        target = self._file(entry.id)
        since = self._owned_since(target, secret)
        if since is None and len(self._files()) >= MOST:
            raise WallFull(f"The wall holds {MOST} entries, the most it takes; remove old ones first.")
        data = {
            "secret_sha256": secret_hash(secret),
            "since": since or now(),
            "entry": entry.model_dump(mode="json"),
        }
        write_whole(target, json.dumps(data, indent=2) + "\n")

    def holds(self, id: UUID) -> bool:
        """Whether there is an entry with this id, or something in its place."""
        return os.path.lexists(self._file(id))

    def remove(self, id: UUID, secret: str) -> bool:
        """Take an entry away; False if there is none. Raises NotYours and LessonError as `put`."""
        target = self._file(id)
        if self._owned_since(target, secret) is None:
            return False
        try:
            target.unlink(missing_ok=True)
        except OSError as error:
            raise LessonError(
                f"{target} could not be removed ({error.strerror}); ask who runs the wall."
            ) from None
        return True

    def entries(self) -> tuple[list[Entry], list[str]]:
        """All entries, the earliest learner first, and one sentence for each file that is none."""
        found: list[tuple[str, Entry]] = []
        faults: list[str] = []
        for path in self._files():
            try:
                since, entry = _entry_of(path, _stamp(path))
            except FileNotFoundError:
                continue  # taken back just now
            except _JUNK as error:
                faults.append(f"{path.name} is no entry ({_why(error)}) and is left out.")
            else:
                found.append((since, entry))
        return [entry for _, entry in sorted(found, key=lambda one: (one[0], str(one[1].id)))], faults

    def version(self) -> str:
        """Changes whenever an entry comes, changes or goes. Raises LessonError without a folder."""
        seen = []
        for path in self._files():
            try:
                seen.append((path.name, *_stamp(path)))
            except OSError:
                continue  # taken back just now
        return secret_hash(repr(seen))[:16]

    def _files(self) -> list[Path]:
        try:
            with os.scandir(self.path) as listing:
                return _bounded([one for one in listing if one.name.endswith(".json")])
        except OSError as error:
            raise LessonError(
                f"There is no class folder {self.path} that can be read ({error.strerror}); check its name "
                "or mount it first (a collector's address begins with http://)."
            ) from None

    def _file(self, id: UUID) -> Path:
        return self.path / f"{id}.json"

    def _owned_since(self, target: Path, secret: str) -> str | None:
        """When the owner of `secret` first shared; None if nobody did. Raises NotYours for another's."""
        self._files()  # says what is wrong with the folder
        try:
            kept = _read(target)
            owner, since = str(kept.get("secret_sha256")), str(kept.get("since", ""))
        except FileNotFoundError:
            return None
        except _JUNK:
            raise NotYours(f"{target.name} is damaged; ask who runs the wall to remove it.") from None
        if not hmac.compare_digest(owner, secret_hash(secret)):
            raise NotYours("This entry was shared from another machine, which alone can change it.")
        return since


def _bounded(files: list[os.DirEntry[str]]) -> list[Path]:
    """Files in order; of each other user of the machine the oldest MOST_OF_OWNER: nobody fills a wall."""
    by_owner: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for file in files:
        with suppress(FileNotFoundError):  # taken back just now
            status = file.stat(follow_symlinks=False)
            by_owner[status.st_uid].append((status.st_ctime_ns, file.path))
    own = os.geteuid() if hasattr(os, "geteuid") else 0
    shown = (sorted(some)[: None if owner == own else MOST_OF_OWNER] for owner, some in by_owner.items())
    return sorted(Path(path) for some in shown for _, path in some)


def _stamp(path: Path) -> tuple[int, int, int]:
    """Changes whenever a file is written again. Raises OSError."""
    status = path.lstat()
    return status.st_mtime_ns, status.st_size, status.st_ino


@lru_cache(maxsize=2 * MOST)
def _entry_of(path: Path, stamp: tuple[int, int, int]) -> tuple[str, Entry]:
    """When its owner first shared, and the entry; a file is read once for each stamp. Raises one of _JUNK."""
    data = _read(path)
    return str(data.get("since", "")), _checked(path, data)


def _read(path: Path) -> dict[str, Any]:
    """Raises one of _JUNK for what is no file of an entry: also for a link, which leads whoever shows the
    wall to files that its owner may not read, and for a pipe, which is not waited for."""
    try:
        descriptor = os.open(path, _PLAIN)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError("it is a link") from None
        raise
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is no file")
        text = file.read(MOST_BYTES + 1)
    if len(text) > MOST_BYTES:
        raise ValueError(f"it is longer than {MOST_BYTES:,} bytes")
    data: dict[str, Any] = json.loads(text)
    return data


def _checked(path: Path, data: dict[str, Any]) -> Entry:
    """Raises one of _JUNK for what is no entry, or lies under another's name."""
    entry = Entry.model_validate(data["entry"])
    if path.stem != str(entry.id):
        raise ValueError("its name is not its id")
    return entry


def _why(error: BaseException) -> str:
    """In a few words, without paths."""
    if isinstance(error, json.JSONDecodeError):
        return f"no JSON from line {error.lineno}"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return first_fault(error) if isinstance(error, ValueError) else "it has no entry in it"
