"""What a kit holds, and whether it still holds it. Standard library only."""

from __future__ import annotations

import json
import re
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
# no separator of any system, no drive, no control character
_FILE_NAME = re.compile(r"[^\x00-\x1f\x7f/\\:]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40,64}")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


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
        listed = _parse(json.loads((kit / LIST).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise KitError(f"{kit / LIST} is damaged ({error}); {_AGAIN}.") from None
    if faults := list(_leading_out(listed)):
        raise KitError(
            f"{kit / LIST} was tampered with: {faults[0]} ({len(faults)} such entries); do not use this kit, "
            "and get another from whoever built it."
        )
    return listed


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


def is_inside(path: object) -> bool:
    """Whether a listed path stays below the folder that it is relative to: "lab/a.py" does, "lab/../a.py" and
    "/a.py" do not."""
    parts = path.split("/") if isinstance(path, str) else [""]
    return all(_FILE_NAME.fullmatch(part) and part not in (".", "..") for part in parts)


def is_hub_id(name: object) -> bool:
    """Whether a name is "owner/model" as the Hub has them, and safe as a part of a path."""
    return isinstance(name, str) and bool(HUB_ID.fullmatch(name)) and is_inside(name)


def _leading_out(manifest: Manifest) -> Iterator[str]:
    """What of a list would be written, or read, outside of the folders that it is meant for."""
    for path, entry in manifest.files.items():
        if not is_inside(path):
            yield f"the file {path!r} lies outside of the kit"
        if not (isinstance(entry.sha256, str) and _SHA256.fullmatch(entry.sha256) and _is_size(entry.size)):
            yield f"the file {path!r} has no right checksum or size"
    for target in manifest.targets:
        for wheel in target.wheels:
            if not is_inside(wheel) or "/" in wheel:
                yield f"the package {wheel!r} lies outside of wheels/"
    for model in manifest.models:
        if not _stays(model):
            yield f"the model {model.name!r} ({model.folder}, {model.commit}) lies outside of models/"


def _is_size(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 0


def _stays(model: PackedModel) -> bool:
    """Whether a model lies where kits have models, under a name and a commit that are no paths."""
    if not (is_inside(model.folder) and model.folder.startswith("models/")):
        return False
    if model.kind == "hub":
        return is_hub_id(model.name) and bool(_COMMIT.fullmatch(str(model.commit)))
    return model.kind == "folder" and is_inside(model.name) and "/" not in model.name


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
    """Compare every file of a kit with its list: there, no link, of the right size, of the right content."""
    real = kit.resolve()
    found = Condition(extra=sorted(set(present(kit)) - set(manifest.files)))
    done = 0
    for path, entry in manifest.files.items():
        if not (kit / path).is_file():
            found.missing.append(path)
        elif (real / path).resolve() != real / path:
            found.damaged[path] = "a link, which kits have none of"
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
