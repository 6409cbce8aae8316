"""A measurement as it is kept: what was measured, where, when, with which versions, by which command."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from labcore import atomic
from labcore.perf import machine


def record(
    benchmark: str, result: dict[str, Any], device: torch.device, peers: Sequence[str] = ()
) -> dict[str, Any]:
    """One self-contained JSON object."""
    return {
        "benchmark": benchmark,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["labcore", *sys.argv[1:]]),
        "machine": machine.describe(device).to_dict(),
        "versions": {name: _version(name) for name in ("labcore", "torch", *peers)},
        "result": result,
    }


def write(path: Path, data: dict[str, Any]) -> None:
    """Write the JSON, all of it or none, making its folder where needed. Raises OSError."""
    atomic.write_text(path, json.dumps(data, indent=2) + "\n")


def refused(path: Path, error: OSError) -> str:
    """The beginning of a sentence: why a record could not be written."""
    return f"{path} could not be written ({error.strerror or error})"


def kept_elsewhere(path: Path, data: dict[str, Any]) -> str:
    """Write a record that `path` does not take to the cache folder, or else to the one of temporary files.

    Returns the end of the sentence that says where it is.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    for folder in (machine.cache_folder("results"), Path(tempfile.gettempdir())):
        place = folder / f"{path.stem}-{stamp}.json"
        try:
            write(place, data)
        except OSError:
            continue
        return f"the result was written to {place}."
    return "no other folder took the result either, so that what was shown is all there is: free some space."


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
