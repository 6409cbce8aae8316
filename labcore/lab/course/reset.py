"""Begin lessons anew: results move aside, notebooks come back as they were. Nothing is deleted."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import nbformat

from labcore.errors import LessonError
from labcore.lab import notebook_files, runner
from labcore.lab.results import WALL_FILE, folder, write_whole
from labcore.lab.runner import Lesson


def resettable(*, notebooks: bool = False) -> list[Lesson]:
    """All lessons, those whose notebook somebody deleted too; with `notebooks` the front page as well."""
    found = [lesson for suffix in (".ipynb", ".py") for lesson in runner.lessons(suffix=suffix)]
    paths = sorted({lesson.path.with_suffix(".ipynb") for lesson in found})
    return [Lesson(path) for path in paths] + [runner.front_page()] * notebooks


def reset(
    lessons: Sequence[Lesson], *, notebooks: bool = False, membership: bool = False
) -> tuple[Path, list[str]]:
    """Move the results of lessons to a folder beside them, and with `notebooks` restore their notebooks too.

    membership: who this learner is on class walls goes aside as well, for the next one at this machine.
    Returns that folder and the names of what lies in it now; it exists only if something was moved. Raises
    LessonError where something cannot be moved; what was moved before that is named and stays where it is.
    """
    aside = folder() / f"before-reset-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"
    fresh = {lesson.path: pristine(lesson.path) for lesson in lessons if notebooks}
    moved: list[str] = []
    try:
        walls = [folder() / WALL_FILE] * (membership and (folder() / WALL_FILE).exists())
        for path in [found for lesson in lessons for found in _results_of(lesson)] + walls:
            aside.mkdir(parents=True, exist_ok=True)
            os.replace(path, aside / path.name)
            moved.append(path.name)
        for notebook, text in fresh.items():
            if _restore(notebook, text, aside):
                moved.append(notebook.name)
    except OSError as error:
        raise LessonError(
            f"The reset stopped at {error.filename} ({error.strerror}); {len(moved)} files lie in {aside}: "
            "mend the folder's permissions or free some space, and reset again."
        ) from None
    return aside, moved


def _results_of(lesson: Lesson) -> list[Path]:
    """The learner's file and that of solution mode."""
    names = (f"lesson-{lesson.number}.json", f"lesson-{lesson.number}-solution.json")
    return [path for name in names if (path := folder() / name).exists()]


def _restore(notebook: Path, fresh: str, aside: Path) -> bool:
    """Write the notebook as it came; True if another was there, which then is kept aside."""
    other = notebook.exists() and notebook.read_bytes() != fresh.encode()
    if other:
        aside.mkdir(parents=True, exist_ok=True)
        shutil.copy2(notebook, aside / notebook.name)
    if other or not notebook.exists():
        write_whole(notebook, fresh)
    return other


def pristine(notebook: Path) -> str:
    """The notebook as it came: the script's cells, and the kept outputs of those that are unchanged.

    Kept outputs come from git where this is a clone, else from the notebook that is there; a cell with a
    kept output that somebody edited comes back without it there, and running it gives the same text again.
    Raises LessonError when there is neither a script beside the notebook nor git.
    """
    committed = _committed(notebook)
    if not notebook.with_suffix(".py").exists():
        if committed is None:
            raise LessonError(
                f"{notebook} cannot be restored, because {notebook.stem}.py beside it is gone and there is "
                "no git to ask; copy both from another installation, or reset without --notebook."
            )
        return committed
    text = notebook.read_text(encoding="utf-8", errors="replace") if notebook.exists() else None
    return _rebuilt(notebook.with_suffix(".py"), [_parsed(text), _parsed(committed)])


def _rebuilt(script: Path, versions: Sequence[nbformat.NotebookNode | None]) -> str:
    """The script as a notebook, with kept outputs from `versions` of it, the last one's first."""
    fresh = notebook_files.read_script(script)
    kept: dict[str, list[nbformat.NotebookNode]] = {}
    for book in versions:
        if book is not None:
            kept |= {cell.source: cell.outputs for cell in book.cells if _is_kept(cell) and cell.outputs}
            fresh.metadata["language_info"] = book.metadata.get("language_info", {"name": "python"})
    code = (cell for cell in fresh.cells if cell.cell_type == "code")
    for count, cell in enumerate(code, start=1):  # as `build` leaves it: in the order of the cells
        cell.execution_count = count
        if _is_kept(cell):
            cell.outputs = kept.get(cell.source, [])
            for output in cell.outputs:
                if "execution_count" in output:
                    output["execution_count"] = count
    return notebook_files.dumps(fresh)


def _is_kept(cell: nbformat.NotebookNode) -> bool:
    return cell.cell_type == "code" and notebook_files.KEEP_TAG in cell.metadata.get("tags", [])


def _parsed(text: str | None) -> nbformat.NotebookNode | None:
    """A notebook, or None where the text is none: a damaged one is what a reset is to mend."""
    try:
        return None if text is None else nbformat.reads(text, as_version=4)
    except (ValueError, KeyError, AttributeError, TypeError, nbformat.ValidationError):
        return None


def _committed(notebook: Path) -> str | None:
    """The notebook as the clone's last commit has it; None without a clone or without git."""
    words = ["git", "-C", str(notebook.parent), "show", f"HEAD:./{notebook.name}"]
    try:
        shown = subprocess.run(words, capture_output=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return shown.stdout.decode() if shown.returncode == 0 else None
