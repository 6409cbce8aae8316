"""What the benchmark commands have in common: options by one name, and the end of each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

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
Out = Annotated[Path | None, typer.Option(help="Write the result as JSON here.")]

# Peers whose package has another name.
PACKAGES = {"llama.cpp": "llama-cpp-python", "transformers-static": "transformers"}


def packages(peers: list[str]) -> list[str]:
    """The names under which peers are installed, whose versions a record states."""
    return [PACKAGES.get(name, name) for name in peers]


def keep(console: Console, out: Path | None, data: dict[str, Any]) -> None:
    """Write the record where somebody asked for it."""
    from labcore.bench import record

    if out:
        record.write(out, data)
        console.print(f"Written to {out}")
