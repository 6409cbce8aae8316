"""What lies in data/: shapes of published models, data sheets of GPUs, and the embedded models.

Every row of the two catalogues names its source. Names are case-insensitive; spaces and underscores read
as hyphens. A model's shape is enough to compute memory and cost; only some shapes can also be run.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from labcore.config import ModelConfig
from labcore.errors import CatalogError
from labcore.shapes import Experts, Latent

_EMBEDDED = {"story": ("story", "model"), "story-draft": ("story", "draft")}


@dataclass(frozen=True)
class Architecture:
    """A published model's shape.

    parameters: the count its source states (often rounded); `perf.costs.num_parameters(config)` counts.
    runnable: whether the Transformer here can run it; if not, `reason` says what it lacks.
    """

    name: str
    title: str
    config: ModelConfig
    parameters: int
    source: str
    runnable: bool = True
    reason: str | None = None


@dataclass(frozen=True)
class GPU:
    """A device's data sheet: memory in bytes (1 GB = 1e9), bandwidth in bytes/s, dense FLOP/s by dtype.

    A multiply-add counts as 2 FLOP. usd_per_hour is an assumed list price (see price_source) or None.
    """

    name: str
    title: str
    memory_bytes: int
    bandwidth: float
    flops: Mapping[str, float]
    source: str
    usd_per_hour: float | None = None
    price_source: str | None = None


def data_dir() -> Path:
    """The folder that holds catalogues and embedded models.

    In order: the environment variable LABCORE_DATA, `data/` beside the package (a checkout), `_data/` inside
    the package (a wheel). Raises CatalogError when none of them is there.
    """
    package = Path(__file__).resolve().parent
    chosen = os.environ.get("LABCORE_DATA")
    candidates = [Path(chosen)] if chosen else [package.parent / "data", package / "_data"]
    for folder in candidates:
        if (folder / "catalog").is_dir():
            return folder
    raise CatalogError(
        f"labcore's data folder is missing (looked at {', '.join(map(str, candidates))}); "
        "reinstall labcore, or point LABCORE_DATA at the data/ folder of a checkout."
    )


def architectures(runnable_only: bool = False) -> list[str]:
    """Names of all catalogued shapes, or of those the engine can run."""
    rows = _rows("architectures").items()
    return [name for name, row in rows if row.get("runnable", True) or not runnable_only]


def architecture(name: str) -> ModelConfig:
    """The shape of a published model. Raises CatalogError with the nearest names for an unknown one."""
    return entry(name).config


def entry(name: str) -> Architecture:
    """A shape with its source, stated size and whether it runs. Raises CatalogError as `architecture`."""
    key = _find(name, _rows("architectures"), "model shape")
    row = _rows("architectures")[key]
    runnable = bool(row.get("runnable", True))
    return Architecture(
        name=key,
        title=row["title"],
        # Families we run go through the reader that checkpoints use; the others only have a shape.
        config=ModelConfig.from_dict(row["config"]) if runnable else _shape_only(row["config"]),
        parameters=int(row["parameters"]),
        source=row["source"],
        runnable=runnable,
        reason=row.get("reason"),
    )


def _shape_only(row: Mapping[str, Any]) -> ModelConfig:
    """A configuration that is counted and never run, its parts included."""
    parts: dict[str, Any] = {"latent": Latent, "experts": Experts}
    built = {name: parts[name](**row[name]) for name in parts if row.get(name) is not None}
    return ModelConfig(**{**row, **built})


def gpus() -> list[str]:
    """Names of all catalogued devices."""
    return list(_rows("gpus"))


def gpu(name: str) -> GPU:
    """A device's data sheet. Raises CatalogError with the nearest names for an unknown one."""
    key = _find(name, _rows("gpus"), "device")
    row = _rows("gpus")[key]
    return GPU(
        name=key,
        title=row["title"],
        memory_bytes=round(row["memory_gb"] * 1e9),
        bandwidth=row["bandwidth_gb_s"] * 1e9,
        flops={dtype: rate * 1e12 for dtype, rate in row["tflops"].items()},
        source=row["source"],
        usd_per_hour=row["usd_per_hour"],
        price_source=row.get("price_source"),
    )


def gpu_reported_as(name: str) -> GPU | None:
    """The data sheet of the device that driver or system call by this name, or None where there is none."""
    for key, row in _rows("gpus").items():
        known = row.get("reported_as")
        if known and re.fullmatch(re.escape(known.lower()) + r"( with .*| \(.*\))?", name.strip().lower()):
            return gpu(key)
    return None


def embedded(name: str) -> Path:
    """Folder of an embedded model ("story" or "story-draft"): config.json, model.safetensors, tokenizer.json.

    Raises CatalogError when there is no such model, or its files are not in the data folder.
    """
    key = _find(name, dict.fromkeys(_EMBEDDED, {}), "embedded model")
    folder = data_dir().joinpath(*_EMBEDDED[key])
    if not (folder / "config.json").is_file():
        raise CatalogError(
            f"The embedded model {key!r} is not in {folder}; fetch a whole checkout of the lab."
        )
    return folder


def _find(name: str, rows: Mapping[str, Mapping[str, Any]], what: str) -> str:
    """The catalogue's own spelling of a name or of one of its aliases."""
    wanted = "-".join(name.lower().replace("_", " ").split())
    aliases = {alias: key for key, row in rows.items() for alias in row.get("aliases", ())}
    if wanted in rows:
        return wanted
    if wanted in aliases:
        return aliases[wanted]
    near = _nearest(wanted, [*rows, *aliases])
    hint = f"nearest: {', '.join(near)}" if near else f"there are {', '.join(rows)}"
    raise CatalogError(f"No {what} is called {name!r}; {hint}.")


def _nearest(wanted: str, names: Iterable[str]) -> list[str]:
    known = list(names)
    starting = [name for name in known if wanted and name.startswith(wanted)]  # "h100" means one of its two
    return starting[:6] or get_close_matches(wanted, known, n=4, cutoff=0.5)


def _rows(kind: str) -> dict[str, dict[str, Any]]:
    return _read(data_dir() / "catalog" / f"{kind}.json", kind)


@lru_cache(maxsize=8)
def _read(path: Path, kind: str) -> dict[str, dict[str, Any]]:
    try:
        rows: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))[kind]
    except (OSError, ValueError, KeyError) as error:
        raise CatalogError(f"The catalogue {path} cannot be read ({error}); restore the file.") from None
    return rows
