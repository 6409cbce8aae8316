"""Begin lessons anew: results move aside, notebooks come back as they were. Nothing is deleted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import nbformat

from labcore.errors import LessonError
from labcore.lab import notebook_files
from labcore.lab.results import folder, write_whole
from labcore.lab.runner import Lesson


def reset(lessons: Sequence[Lesson], *, notebooks: bool = False) -> tuple[Path, list[str]]:
    """Move the results of lessons to a folder beside them, and with `notebooks` restore their notebooks too.

    Returns that folder and the names of what lies in it now; it exists only if something was moved. Raises
    LessonError where something cannot be moved; what was moved before that is named and stays where it is.
    """
    aside = folder() / f"before-reset-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"
    moved: list[str] = []
    try:
        for lesson in lessons:
            for path in _results_of(lesson):
                aside.mkdir(parents=True, exist_ok=True)
                os.replace(path, aside / path.name)
                moved.append(path.name)
            if notebooks and _restore(lesson.path, aside):
                moved.append(lesson.path.name)
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


def _restore(notebook: Path, aside: Path) -> bool:
    """Write the notebook as its script says; the edited one is kept aside. False if it was unchanged."""
    fresh = notebook_files.dumps(pristine(notebook))
    if fresh == notebook.read_text(encoding="utf-8"):
        return False
    aside.mkdir(parents=True, exist_ok=True)
    shutil.copy2(notebook, aside / notebook.name)
    write_whole(notebook, fresh)
    return True


def pristine(notebook: Path) -> nbformat.NotebookNode:
    """The notebook as it came: the script's cells, and of kept outputs those whose cell is unchanged.

    Where somebody ran or edited a cell with a kept output, that cell comes back without it: running it gives
    the same text again. Raises LessonError when there is no script beside the notebook.
    """
    fresh = notebook_files.read_script(notebook.with_suffix(".py"))
    present = nbformat.read(notebook, as_version=4)
    fresh.metadata["language_info"] = present.metadata.get("language_info", fresh.metadata["language_info"])
    kept = {cell.source: cell for cell in present.cells if _is_kept(cell)}
    count = 0
    for cell in fresh.cells:
        if cell.cell_type != "code":
            continue
        count += 1
        cell.execution_count = count  # as `build` leaves it: in the order of the cells
        if _is_kept(cell) and cell.source in kept:
            cell.outputs = kept[cell.source].outputs
            for output in cell.outputs:
                if "execution_count" in output:
                    output["execution_count"] = count
    return fresh


def _is_kept(cell: nbformat.NotebookNode) -> bool:
    return notebook_files.KEEP_TAG in cell.metadata.get("tags", [])
