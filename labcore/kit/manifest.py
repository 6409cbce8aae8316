"""What a kit holds, and whether it still holds it. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from labcore.errors import KitError
from labcore.kit import files
from labcore.kit.progress import Progress

LIST = "kit.json"
LIST_SUM = "kit.json.sha256"
UNFINISHED = ".unfinished"  # lies in a kit while it is built
FORMAT = 1
_AGAIN = "copy the kit again from where it came from"


@dataclass(frozen=True)
class Target:
    """One kind of machine that the kit serves.

    wheels: file names in `wheels/`. packages: version by name. installed_bytes: what the wheels unpack to.
    """

    platform: str
    python: str
    gpu: str
    wheels: list[str]
    packages: dict[str, str]
    installed_bytes: int


@dataclass(frozen=True)
class PackedModel:
    """A model in the kit: kind "hub" (goes into the Hub's cache, under its commit) or "folder"."""

    name: str
    kind: str
    folder: str
    commit: str = ""


@dataclass(frozen=True)
class Entry:
    """One file's size in bytes and SHA-256."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The whole list. `files` has paths with forward slashes, relative to the kit."""

    lab: str
    made_at: str
    made_by: str
    targets: list[Target]
    models: list[PackedModel]
    files: dict[str, Entry]
    format: int = FORMAT

    @property
    def nbytes(self) -> int:
        """Size of all listed files."""
        return sum(entry.size for entry in self.files.values())

    def under(self, folder: str) -> dict[str, Entry]:
        """The files of one folder of the kit, by path relative to it."""
        start = folder + "/"
        return {path.removeprefix(start): e for path, e in self.files.items() if path.startswith(start)}


@dataclass(frozen=True)
class Condition:
    """What is wrong with a kit's files; each list holds paths, `damaged` with the reason."""

    missing: list[str] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)
    extra: list[str] = field(default_factory=list)

    def refuse(self, total: int) -> None:
        """Raises KitError that names what is damaged or missing. Files that do not belong are harmless."""
        named = [f"{path} ({why})" for path, why in self.damaged.items()]
        named += [f"{path} (missing)" for path in self.missing]
        if named:
            more = f" and {len(named) - 3} more" if len(named) > 3 else ""
            it, them = ("is", "that file") if len(named) == 1 else ("are", "those files")
            raise KitError(
                f"{len(named)} of the kit's {total} files {it} damaged or missing: "
                f"{', '.join(named[:3])}{more}; copy {them} again from where the kit came from, then run "
                "this again."
            )


def read(kit: Path) -> Manifest:
    """The kit's list. Raises KitError: no kit, an archive, an unfinished one, a damaged list."""
    if kit.is_file():
        raise KitError(f"{kit} is a file; unpack it first (tar -xf {kit}), then name the folder.")
    if (kit / UNFINISHED).exists():
        raise KitError(f"The kit in {kit} is unfinished; run the labcore kit build that made it again.")
    if not (kit / LIST).is_file():
        raise KitError(f"{kit} holds no {LIST}, so it is no offline kit; name the folder that has one.")
    try:
        stated = (kit / LIST_SUM).read_text(encoding="ascii").split()[0]
        if files.digest(kit / LIST) != stated:
            raise ValueError("its checksum is another")
        return _parse(json.loads((kit / LIST).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise KitError(f"{kit / LIST} is damaged ({error}); {_AGAIN}.") from None


def _parse(data: dict[str, Any]) -> Manifest:
    if data["format"] != FORMAT:
        raise KitError(
            f"The kit has format {data['format']} and this lab reads {FORMAT}; run the kit's own install.py."
        )
    return Manifest(
        **{
            **data,
            "targets": [Target(**target) for target in data["targets"]],
            "models": [PackedModel(**model) for model in data["models"]],
            "files": {path: Entry(**entry) for path, entry in data["files"].items()},
        }
    )


def write(kit: Path, manifest: Manifest) -> None:
    """Write the list and its checksum; with it the kit is finished."""
    files.write_whole(kit / LIST, json.dumps(asdict(manifest), indent=1) + "\n")
    files.write_whole(kit / LIST_SUM, f"{files.digest(kit / LIST)}  {LIST}\n")
    (kit / UNFINISHED).unlink(missing_ok=True)


def entries(kit: Path, paths: Iterable[str]) -> dict[str, Entry]:
    """Size and checksum of files that lie in a kit."""
    return {path: Entry((kit / path).stat().st_size, files.digest(kit / path)) for path in sorted(paths)}


def present(kit: Path) -> Iterator[str]:
    """Paths of all files in a kit but the list itself."""
    for path in kit.rglob("*"):
        name = path.relative_to(kit).as_posix()
        if path.is_file() and name not in (LIST, LIST_SUM, UNFINISHED):
            yield name


def examine(kit: Path, manifest: Manifest, progress: Progress | None = None) -> Condition:
    """Compare every file of a kit with its list: there, of the right size, of the right content."""
    found = Condition(extra=sorted(set(present(kit)) - set(manifest.files)))
    done = 0
    for path, entry in manifest.files.items():
        if not (kit / path).is_file():
            found.missing.append(path)
        elif why := _damage(kit / path, entry):
            found.damaged[path] = why
        done += entry.size
        if progress:
            progress.show(done, path.rpartition("/")[2])
    return found


def _damage(path: Path, entry: Entry) -> str:
    """What is wrong with a file, or nothing."""
    try:
        if (size := path.stat().st_size) != entry.size:
            return f"{size:,} bytes of {entry.size:,}"
        return "" if files.digest(path) == entry.sha256 else "other content"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
