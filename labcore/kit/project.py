"""The project's own files: which of them a learner gets, and how new ones arrive without losing a learner's.

Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from labcore.errors import KitError
from labcore.kit import files
from labcore.kit.manifest import Entry

# The layout of a clone, less what only the project's developers need.
_PARTS = (
    "labcore", "notebooks", "data", "deploy", "pyproject.toml", "README.md", "CONTRIBUTING.md", "LICENSE",
    "Makefile", "environment.yml",
)  # fmt: skip
_APART = "notebooks/guides/"  # the instructor's, with solutions
_NEEDED = ("labcore", "notebooks", "data", "pyproject.toml")
_CACHES = ("__pycache__", ".ipynb_checkpoints")


def root() -> Path:
    """The clone that this labcore runs from. Raises KitError where it was installed without one."""
    clone = Path(__file__).parents[2]
    if missing := [part for part in _NEEDED if not (clone / part).exists()]:
        raise KitError(
            f"A kit is built from a clone of the lab and {clone} has no {' and no '.join(missing)}; run "
            "labcore kit build from a clone."
        )
    return clone


def sources(clone: Path) -> Iterator[str]:
    """Paths, relative to the clone, of what a kit carries: no caches, results or guides, nothing hidden."""
    for part in _PARTS:
        place = clone / part
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            relative = path.relative_to(clone)
            if relative.as_posix().startswith(_APART):
                continue
            if path.is_file() and not any(word.startswith(".") or word in _CACHES for word in relative.parts):
                yield relative.as_posix()


@dataclass(frozen=True)
class Update:
    """What copying the project did. kept: changed by the learner and left; aside: the learner's, renamed."""

    written: int = 0
    kept: list[str] = field(default_factory=list)
    aside: list[str] = field(default_factory=list)


def update(source: Path, into: Path, wanted: Mapping[str, Entry], before: Mapping[str, str]) -> Update:
    """Bring a folder's files to what the kit has, losing nothing that a learner wrote.

    wanted: the kit's files. before: SHA-256 of what an earlier installation wrote here, by path. A file that
    the learner changed stays where the kit's is still the one of before; where both changed, the learner's is
    kept beside the new one as NAME.yours. Raises KitError where a link leads out of the folder.
    """
    done = Update()
    written = 0
    for path, entry in wanted.items():
        target = into / path
        now = files.digest(target) if target.is_file() else None
        if now == entry.sha256:
            continue
        files.ensure_inside(target, into)
        if now and before.get(path) == entry.sha256:
            done.kept.append(path)
            continue
        if now and before.get(path) != now:
            done.aside.append(path)
            target.replace(_free_name(target))
        files.copy_whole(source / path, target)
        written += 1
    return Update(written, done.kept, done.aside)


def _free_name(path: Path) -> Path:
    """`01_introduction.yours.ipynb`, numbered from the second on."""
    names = (
        path.with_name(f"{path.stem}.yours{number or ''}{path.suffix}") for number in [0, *range(2, 1000)]
    )
    return next(name for name in names if not name.exists())
