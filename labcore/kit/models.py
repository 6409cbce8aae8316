"""Models in a kit: packed from the Hub or from a folder, and placed where `labcore.load` finds them.

A model of the Hub goes into the Hub's own cache, so that its name loads it without a network; a folder goes
into the lab's `models/`, and its path loads it. `place` is standard library only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from labcore.errors import KitError
from labcore.kit import files
from labcore.kit.manifest import Manifest, PackedModel, is_hub_id

_EMBEDDED = ("story", "story-draft")  # in data/, and so in every kit


@dataclass(frozen=True)
class Source:
    """A model to pack and the files it consists of."""

    model: PackedModel
    paths: list[Path]


def find(names: Sequence[str]) -> list[Source]:
    """The models' files on this machine; those of the Hub are fetched where its cache lacks them.

    Raises KitError (no such model, two of one name), HubError and ConfigError.
    """
    found = [_source(name) for name in dict.fromkeys(names) if name not in _EMBEDDED]
    places = [source.model.folder for source in found]
    if twice := sorted({place for place in places if places.count(place) > 1}):
        raise KitError(f"Two models would both lie in {twice[0]} of the kit; rename one of the folders.")
    return found


def _source(name: str) -> Source:
    path = Path(name).expanduser()
    if path.is_dir():
        return _from_folder(path.resolve(), [file for file in sorted(path.iterdir()) if file.is_file()])
    if path.suffix == ".gguf" and path.is_file():
        return _from_folder(path.resolve().with_suffix(""), [path, *sorted(path.parent.glob("*.json"))])
    if name.startswith("shape:"):
        raise KitError(f"{name} has random weights, made where it is loaded; leave it out.")
    if is_hub_id(name):
        return _from_hub(name)
    raise KitError(
        f"There is no model or folder {name!r}; give a folder, a .gguf file, or a Hub id owner/name."
    )


def _from_folder(folder: Path, paths: list[Path]) -> Source:
    if not any(path.suffix in (".safetensors", ".gguf") for path in paths):
        raise KitError(
            f"{folder} holds no .safetensors and no .gguf file, so it is no model; name one that does."
        )
    return Source(PackedModel(folder.name, "folder", f"models/{folder.name}"), paths)


def _from_hub(name: str) -> Source:
    from labcore.model import hub

    folder = hub.fetch(name, None, progress=True, accept=lambda path: None)  # others have more memory
    commit = folder.name
    model = PackedModel(name, "hub", f"models/hub/{name.replace('/', '--')}/{commit}", commit)
    return Source(model, [path for path in sorted(folder.iterdir()) if path.is_file()])


def place(kit: Path, manifest: Manifest, lab: Path) -> Iterator[str]:
    """Copy the kit's models to this machine; yields a line about each. Raises OSError on a full disk."""
    for model in manifest.models:
        root, target = _home(model, lab)
        for path, entry in manifest.under(model.folder).items():
            if not files.is_right(target / path, entry.sha256):
                files.ensure_inside(target / path, root)
                files.copy_whole(kit / model.folder / path, target / path)
        if model.kind == "hub":
            yield _point_at(model, target)
        else:
            yield f"{model.name} loads as {_path_to_load(target)}"


def _home(model: PackedModel, lab: Path) -> tuple[Path, Path]:
    """The folder that nothing may be written outside of, and the model's own below it."""
    if model.kind == "hub":
        cache = hub_cache()
        return cache, cache / f"models--{model.name.replace('/', '--')}" / "snapshots" / model.commit
    return lab, lab / "models" / model.name


def _path_to_load(folder: Path) -> Path:
    """A folder of safetensors loads as a folder, a GGUF file by its own name."""
    return next(iter(sorted(folder.glob("*.gguf"))), folder)


def _point_at(model: PackedModel, snapshot: Path) -> str:
    """Name the commit as the model's `main`, unless this machine has a `main` of its own."""
    reference = snapshot.parents[1] / "refs" / "main"
    if reference.is_file() and reference.read_text(encoding="ascii").strip() != model.commit:
        return f"{model.name}: this machine has another version already, which stays the one that loads"
    reference.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(reference, model.commit)
    return f"{model.name} loads by that name"


def hub_cache() -> Path:
    """Where the Hub's client keeps models on this machine, by its own rules."""
    if chosen := os.environ.get("HF_HUB_CACHE"):
        return Path(chosen).expanduser()
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("HF_HOME") or caches / "huggingface").expanduser() / "hub"
