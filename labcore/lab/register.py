"""Entries of all lessons under string ids, read from a package's `lessonNN.py` when first asked for."""

from __future__ import annotations

import difflib
import pkgutil
from importlib import import_module
from typing import Generic, TypeVar

from labcore.errors import LessonError

T = TypeVar("T")


class Register(Generic[T]):
    """Exercises, or hunts: `kind` names one of them, `package` holds the modules that add them."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind, self.package = kind, package
        self._entries: dict[str, T] = {}

    def __contains__(self, id: str) -> bool:
        return id in self._entries

    def add(self, id: str, entry: T) -> None:
        """Keep an entry under its id."""
        self._entries[id] = entry

    def find(self, id: str) -> T:
        """The entry with this id. Raises LessonError with the nearest ids when there is none."""
        self._read_lessons()
        if id not in self._entries:
            near = difflib.get_close_matches(str(id), self._entries, n=3, cutoff=0.0)
            raise LessonError(f"There is no {self.kind} {id!r}; the nearest are {', '.join(near)}.")
        return self._entries[id]

    def of_lesson(self, lesson: str) -> list[T]:
        """All entries of lesson "01", "02", … in order."""
        self._read_lessons()
        return [self._entries[id] for id in sorted(self._entries) if id.startswith(f"{lesson}.")]

    def _read_lessons(self) -> None:
        package = import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            if module.name.startswith("lesson"):
                import_module(f"{self.package}.{module.name}")
