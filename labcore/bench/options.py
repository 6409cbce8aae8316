"""What the benchmark commands have in common: options by one name, and the end of each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from labcore.atomic import ensure_writable
from labcore.errors import LabError

Source = Annotated[str, typer.Option(help="story, a folder, a Hub id, or shape:NAME.")]
OptionalSource = Annotated[
    str | None,
    typer.Option(
        help="story, a folder, a Hub id, or shape:NAME; default: shape:smollm2-135m, on a GPU "
        "shape:llama-3.2-1b."
    ),
]
Peers = Annotated[list[str] | None, typer.Option(help="A peer: transformers, llama.cpp. May be given again.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N, mps.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, float16, bfloat16.")]


def ready(out: Path | None) -> Path | None:
    """Before anything is measured. Raises LabError where the result could not be written."""
    if out:
        ensure_writable(out)
    return out


Out = Annotated[Path | None, typer.Option(help="Write the result as JSON here.", callback=ready)]
Page = Annotated[Path | None, typer.Option(help="Draw everything into this HTML page.", callback=ready)]
NOBODY = "none"  # --against none

# Peers whose package has another name.
PACKAGES = {"llama.cpp": "llama-cpp-python", "transformers-static": "transformers"}


def packages(peers: list[str]) -> list[str]:
    """The names under which peers are installed, whose versions a record states."""
    return [PACKAGES.get(name, name) for name in peers]


def peers_named(against: list[str] | None) -> list[str] | None:
    """Peers of --against: none of them for "none", None where it was not given. LabError for both at once."""
    if not against:
        return None
    if NOBODY in against and len(set(against)) > 1:
        others = ", ".join(name for name in against if name != NOBODY)
        raise LabError(f"--against none means no peer, and {others} was named too; leave one of them out.")
    return [name for name in against if name != NOBODY]


def keep(console: Console, out: Path | None, data: dict[str, Any]) -> None:
    """Write the record where somebody asked for it. Raises LabError, with the place that it went to instead,
    where it could not be written there."""
    from labcore.bench import record

    if out is None:
        return
    try:
        record.write(out, data)
    except OSError as error:
        raise LabError(f"{record.refused(out, error)}; {record.kept_elsewhere(out, data)}") from None
    console.print(f"Written to {out}", markup=False, highlight=False, soft_wrap=True)
