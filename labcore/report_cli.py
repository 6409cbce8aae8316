"""`labcore report`: the page that a learner hands in."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    html = "html"
    md = "md"


def report(
    out: Annotated[Path | None, typer.Option(help="Where to write it; none: report.html here.")] = None,
    name: Annotated[str, typer.Option(help="Your name, if you want it on the page.")] = "",
    format: Annotated[Format | None, typer.Option(help="html or md; none: as --out ends.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write one page with your machine, its roofs, predictions against measurements, and exercises.

    It is made from the results on this machine, and nothing is sent anywhere.
    """
    from labcore.errors import LessonError
    from labcore.lab.course import progress
    from labcore.lab.course import report as pages
    from labcore.lab.results import folder, write_whole

    kind = format or _format_of(out)
    target = out or Path(f"report.{kind.value}")
    if target.exists() and not force:
        raise LessonError(f"{target} is there already; give --force to replace it, or another --out.")
    made = pages.collect(name)
    write_whole(target, pages.html(made) if kind is Format.html else pages.markdown(made))
    print(f"Written to {target}, from the results in {folder()}.")
    print(progress.misplaced() or progress.what_next(made.lessons))


def _format_of(out: Path | None) -> Format:
    """The format that a name ends with; html where there is no name."""
    from labcore.errors import LessonError

    endings = {".html": Format.html, ".htm": Format.html, ".md": Format.md}
    if out is None:
        return Format.html
    if out.suffix.lower() not in endings:
        raise LessonError(f"{out} ends with neither .html nor .md; name it so, or give --format.")
    return endings[out.suffix.lower()]
