"""A lesson's results: one readable JSON file on this machine, written whole or not at all.

The folder is `$LABCORE_RESULTS` where that is set; else `runs/results` of the checkout that the notebook
lies in; else `~/.local/share/labcore`. Nothing is sent anywhere.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from labcore import atomic
from labcore.errors import LessonError

_SECTIONS = ("predictions", "exercises", "measurements")
_FILES = "lesson-*.json"
WALL_FILE = "wall.json"  # who this learner is on class walls, beside the results
DECODE_RATE = "decode tok/s"  # how the names of measurements of that begin


def folder() -> Path:
    """Where results are kept."""
    if chosen := os.environ.get("LABCORE_RESULTS"):
        return Path(chosen).expanduser()
    here = Path.cwd()
    for place in (here, *here.parents):
        if (place / "notebooks").is_dir() and (place / "pyproject.toml").is_file():
            return place / "runs" / "results"
    return Path.home() / ".local" / "share" / "labcore"


def elsewhere() -> Path | None:
    """Where results lie if none lie in `folder()`: a command was then given outside of the checkout."""
    there = Path(__file__).parents[2] / "runs" / "results"
    if os.environ.get("LABCORE_RESULTS") or any(folder().glob(_FILES)):
        return None
    return there if any(there.glob(_FILES)) else None


def now() -> str:
    """The time in UTC, to the second, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass
class Results:
    """What one lesson found: its machine, predictions, exercises and measurements."""

    lesson: str
    mode: str = "learner"
    machine: dict[str, Any] = field(default_factory=dict)
    predictions: dict[str, dict[str, Any]] = field(default_factory=dict)
    exercises: dict[str, dict[str, Any]] = field(default_factory=dict)
    measurements: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Solution runs have a file of their own, so that they never touch what a learner answered."""
        return folder() / f"lesson-{self.lesson}{'' if self.mode == 'learner' else '-' + self.mode}.json"

    @classmethod
    def open(cls, lesson: str, mode: str = "learner") -> Results:
        """The lesson's results as last saved, or empty ones. Raises LessonError if the file is damaged."""
        results = cls(lesson, mode)
        data = read_saved(results.path)
        for section in _SECTIONS:
            getattr(results, section).update(data.get(section, {}))
        return results

    def record(self, section: str, key: str, **values: Any) -> None:
        """Add to an entry of predictions, exercises or measurements."""
        getattr(self, section).setdefault(key, {}).update(values)

    def save(self) -> Path:
        """Write the file, whole or not at all. Raises LessonError where the disk is full or refuses."""
        data = {"lesson": self.lesson, "mode": self.mode, "saved_at": now(), "machine": self.machine}
        data |= {section: getattr(self, section) for section in _SECTIONS}
        return write_whole(self.path, json.dumps(data, indent=2, default=str) + "\n", private=True)


def read_saved(path: Path) -> dict[str, Any]:
    """What a results file holds; nothing where there is none. Raises LessonError if the file is damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from None
    except OSError as error:
        raise LessonError(
            f"{path} could not be read ({error.strerror or error}); mend its permissions, or move it away."
        ) from None
    if not _holds_results(data):
        raise _damaged(path, "it holds no results")
    return data


def _damaged(path: Path, why: str) -> LessonError:
    return LessonError(
        f"{path} is damaged ({why}); `labcore lessons reset` puts it aside and begins this lesson anew."
    )


def _holds_results(data: Any) -> bool:
    """Whether a file's content has the shape that `save` writes: sections of entries with their values."""
    if not isinstance(data, dict) or not isinstance(data.get("saved_at", ""), str):
        return False
    sections = [data.get(name, {}) for name in ("machine", *_SECTIONS)]
    if not all(isinstance(section, dict) for section in sections):
        return False
    return all(isinstance(entry, dict) for section in sections[1:] for entry in section.values())


def write_whole(path: Path, text: str, *, private: bool = False) -> Path:
    """Write a text file atomically: a reader sees the old one or the new one, never half of it.

    private: nobody but the user may read it. Raises LessonError where the disk is full or the folder refuses;
    the old file is then as it was.
    """
    try:
        return atomic.write_text(path, text, private=private)
    except OSError as error:
        raise LessonError(
            f"{path} could not be written ({error.strerror or error}); what was there before is unchanged: "
            "make room or choose another folder, and try again."
        ) from None
