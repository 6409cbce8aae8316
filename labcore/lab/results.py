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
        try:
            data = json.loads(results.path.read_text(encoding="utf-8"))
            for section in _SECTIONS:
                getattr(results, section).update(data.get(section, {}))
        except FileNotFoundError:
            pass
        except (ValueError, AttributeError, TypeError) as error:
            raise LessonError(
                f"{results.path} is damaged ({error}); delete it to start this lesson anew."
            ) from None
        return results

    def record(self, section: str, key: str, **values: Any) -> None:
        """Add to an entry of predictions, exercises or measurements."""
        getattr(self, section).setdefault(key, {}).update(values)

    def save(self) -> Path:
        """Write the file atomically: a reader sees the old one or the new one, never half of it."""
        path = self.path
        path.parent.mkdir(parents=True, exist_ok=True)
        data = {"lesson": self.lesson, "mode": self.mode, "saved_at": now(), "machine": self.machine}
        data |= {section: getattr(self, section) for section in _SECTIONS}
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(data, file, indent=2, default=str)
                file.write("\n")
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return path
