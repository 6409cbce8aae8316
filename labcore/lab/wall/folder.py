"""A folder of entries, one file for each learner: shared on a network disk, or kept by the collector."""

from __future__ import annotations

import hmac
import json
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from labcore.errors import LessonError
from labcore.lab.results import write_whole
from labcore.lab.wall.entry import Entry, first_fault, secret_hash

MOST = 500  # entries of one class


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
        self._ensure()
        target = self._file(entry.id)
        self._ensure_owner(target, secret)
        if not target.exists() and len(list(self.path.glob("*.json"))) >= MOST:
            raise WallFull(f"The wall holds {MOST} entries, the most it takes; remove old ones first.")
        data = {"secret_sha256": secret_hash(secret), "entry": entry.model_dump(mode="json")}
        write_whole(target, json.dumps(data, indent=2) + "\n")

    def remove(self, id: UUID, secret: str) -> bool:
        """Take an entry away; False if there is none. Raises NotYours and LessonError as `put`."""
        self._ensure()
        target = self._file(id)
        if not target.exists():
            return False
        self._ensure_owner(target, secret)
        try:
            target.unlink()
        except OSError as error:
            raise LessonError(
                f"{target} could not be removed ({error.strerror}); ask who runs the wall."
            ) from None
        return True

    def entries(self) -> tuple[list[Entry], list[str]]:
        """All entries, the earliest shared first, and one sentence for each file that is none."""
        self._ensure()
        found: list[Entry] = []
        faults: list[str] = []
        for path in sorted(self.path.glob("*.json")):
            try:
                entry = _read(path)
            except (ValueError, OSError, KeyError, TypeError) as error:
                fault = first_fault(error) if isinstance(error, ValueError) else str(error)
                faults.append(f"{path.name} is no entry ({fault}) and is left out.")
            else:
                found.append(entry)
        return sorted(found, key=lambda entry: (entry.shared_at, str(entry.id))), faults

    def version(self) -> str:
        """Changes whenever an entry comes, changes or goes."""
        self._ensure()
        files = ((path.name, path.stat().st_mtime_ns) for path in sorted(self.path.glob("*.json")))
        return secret_hash(repr(list(files)))[:16]

    def _ensure(self) -> None:
        if not self.path.is_dir():
            raise LessonError(f"There is no class folder {self.path}; check its name, or mount it first.")

    def _file(self, id: UUID) -> Path:
        return self.path / f"{id}.json"

    def _ensure_owner(self, target: Path, secret: str) -> None:
        try:
            kept = json.loads(target.read_text(encoding="utf-8")).get("secret_sha256", "")
        except FileNotFoundError:
            return
        except (ValueError, OSError, AttributeError):
            raise NotYours(f"{target.name} is damaged; ask who runs the wall to remove it.") from None
        if not hmac.compare_digest(str(kept), secret_hash(secret)):
            raise NotYours("This entry was shared from another machine, which alone can change it.")


def _read(path: Path) -> Entry:
    """Raises ValueError, KeyError, TypeError, OSError for what is no entry."""
    entry = Entry.model_validate(json.loads(path.read_text(encoding="utf-8"))["entry"])
    if path.stem != str(entry.id):
        raise ValueError("its name is not its id")
    return entry
