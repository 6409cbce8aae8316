"""A lesson's results: one readable JSON file on this machine, written whole or not at all.

The folder is `$LABCORE_RESULTS` where that is set; else `runs/results` of the checkout that the notebook
lies in; else `~/.local/share/labcore`. Nothing is sent anywhere.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from labcore.errors import LessonError

_SECTIONS = ("predictions", "exercises", "measurements")


def folder() -> Path:
    """Where results are kept."""
    if chosen := os.environ.get("LABCORE_RESULTS"):
        return Path(chosen).expanduser()
    here = Path.cwd()
    for place in (here, *here.parents):
        if (place / "notebooks").is_dir() and (place / "pyproject.toml").is_file():
            return place / "runs" / "results"
    return Path.home() / ".local" / "share" / "labcore"


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
        return write_whole(self.path, json.dumps(data, indent=2, default=str) + "\n")


def read_saved(path: Path) -> dict[str, Any]:
    """What a results file holds; nothing where there is none. Raises LessonError if the file is damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise LessonError(f"{path} is damaged ({error}); delete it to start this lesson anew.") from None
    if not isinstance(data, dict) or not all(_is_section(data.get(name, {})) for name in _SECTIONS):
        raise LessonError(f"{path} is damaged (it holds no results); delete it to start this lesson anew.")
    return data


def _is_section(value: Any) -> bool:
    """Entries by id, each with its values."""
    return isinstance(value, dict)


def write_whole(path: Path, text: str) -> Path:
    """Write a text file atomically: a reader sees the old one or the new one, never half of it.

    Raises LessonError where the disk is full or the folder refuses; the old file is then as it was.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError as error:
        raise LessonError(
            f"{path} could not be written ({error.strerror or error}); what was there before is unchanged: "
            "make room or choose another folder, and try again."
        ) from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
    return path
