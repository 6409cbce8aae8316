"""`labcore site`: the lessons as pages that need no kernel and no network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def site(
    out: Annotated[Path, typer.Option(help="The folder to write.")] = Path("site"),
    runs: Annotated[
        Path | None, typer.Option("--from", help="Executed lessons are here already; none: execute all.")
    ] = None,
) -> None:
    """Execute all lessons and write them as a site: live figures, folded solutions, search.

    The site that was there stays until the new one is whole; a lesson that fails leaves it as it was.
    """
    from rich.console import Console

    from labcore.lab.site import build as builder

    runs = runs or builder.execute_lessons(Path("runs") / "site", Console())
    figures = builder.build(out, runs)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    made = f"{figures} figures, {size / 1e6:.1f} MB"
    print(f"{out}/index.html: {made}; open it, or put the folder on any server.")
