"""Copies of the lessons: as they came for learners, and with solutions and notes for instructors.

Notes and solutions stand in cells of their own, tagged, so that a style sheet or a script can find them.
A copy remembers what was written; one that somebody has worked in since is not written over unasked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell

from labcore.errors import LessonError
from labcore.lab import notebook_files
from labcore.lab.course import outline as outlines
from labcore.lab.course import reset, solutions, teaching
from labcore.lab.course.outline import Outline
from labcore.lab.course.teaching import Discussion, Expected
from labcore.lab.results import write_whole
from labcore.lab.runner import Lesson

READERS = ("learners", "instructors")
NOTE, SOLUTION, DISCUSSION = "labcore-note", "labcore-solution", "labcore-discussion"
_KEY = "labcore"


def write(lessons: Sequence[Lesson], reader: str, out: Path, *, force: bool = False) -> list[Path]:
    """Write copies for "learners" or "instructors" into `out`; returns their paths.

    Raises LessonError for another reader, and, before anything is written, where a copy that is there was
    worked in, or a file of that name is no copy. With `force` those are replaced.
    """
    if reader not in READERS:
        raise LessonError(f"Copies are for {' or '.join(READERS)}, not for {reader!r}.")
    books = {out / lesson.path.name: _copy(lesson, reader) for lesson in lessons}
    kept = [] if force else [path.name for path in books if path.exists() and not _is_untouched(path)]
    if kept:
        raise LessonError(
            f"{out} holds {len(kept)} files that somebody has worked in ({', '.join(kept)}); nothing was "
            "written: choose another --out, or replace them with --force."
        )
    return [write_whole(path, sealed(book, reader)) for path, book in books.items()]


def original(lesson: Lesson) -> NotebookNode:
    """The lesson as it came, whatever was done to the notebook since. Raises LessonError."""
    return nbformat.reads(reset.pristine(lesson.path), as_version=4)


def _copy(lesson: Lesson, reader: str) -> NotebookNode:
    book = original(lesson)
    return book if reader == "learners" else _annotated(book, lesson)


def _annotated(book: NotebookNode, lesson: Lesson) -> NotebookNode:
    """The instructor's copy: runs in solution mode, so that its results never mix with a learner's."""
    outline, notes = outlines.outline(lesson), teaching.of_lesson(lesson.number)
    ends = {part.end: part.number for part in outline.parts}
    cells = [_banner(outline)]
    for index, cell in enumerate(book.cells):
        asked = outlines.calls(cell.source) if cell.cell_type == "code" else []
        cells += [_prediction(id, notes.predictions[id]) for kind, id in asked if kind == "predictions"]
        cells.append(_in_solution_mode(cell))
        for id in dict.fromkeys(id for kind, id in asked if kind != "predictions"):
            cells += _solution(id)
        if part := ends.get(index + 1):
            cells.append(_discussion([talk for talk in notes.discussions if talk.part == part]))
    for index, cell in enumerate(cells):
        cell.id = f"copy-{index:03d}"
    book.cells = cells
    return book


def _in_solution_mode(cell: NotebookNode) -> NotebookNode:
    if "parameters" in cell.metadata.get("tags", ()):
        cell.source = cell.source.replace('MODE: str = "learner"', 'MODE: str = "solution"')
    return cell


def _banner(outline: Outline) -> NotebookNode:
    return _note(
        f"**Instructor's copy of lesson {int(outline.number)}; not to be handed out.** Notes like this one, "
        "solutions and discussions are added. It runs in solution mode: results go to a file of their own. "
        'Set MODE to "learner" below to see open exercises and planted bugs fail first.'
    )


def _prediction(id: str, expected: Expected) -> NotebookNode:
    lines = [f"**Instructor, prediction {id}.** {expected.right}", ""]
    lines += [f"* *{wrong.answer}*: {wrong.reveals} Say: {wrong.say}" for wrong in expected.wrong]
    return _note("\n".join(lines))


def _solution(id: str) -> list[NotebookNode]:
    lines = [f"**Instructor, {id}.** {solutions.why(id)}".rstrip(), ""]
    lines += [f"{rung}. {hint}" for rung, hint in enumerate(solutions.hints(id), start=1)]
    code = new_code_cell(solutions.cell_of(id))
    code.metadata["tags"] = [SOLUTION]
    return [_note("\n".join(lines)), code]


def _discussion(talks: Iterable[Discussion]) -> NotebookNode:
    lines = [f"**Instructor, to discuss.** {talk.question}\n\nA good answer: {talk.good}" for talk in talks]
    return _note("\n\n".join(lines), DISCUSSION)


def _note(text: str, tag: str = NOTE) -> NotebookNode:
    """A marked text. JupyterLab draws this class of box in colour, in light and in dark themes."""
    cell = new_markdown_cell(f'<div class="alert alert-block alert-warning {tag}">\n\n{text}\n\n</div>')
    cell.metadata["tags"] = [tag]
    return cell


def sealed(book: NotebookNode, reader: str) -> str:
    """The notebook as text, with a note of what was written in it."""
    book.metadata[_KEY] = {"copy": reader, "sources": _sources(book), "outputs": _outputs(book)}
    return notebook_files.dumps(book)


def is_edited(path: Path) -> bool:
    """Whether somebody changed the cells of a copy; True for what is no copy of ours."""
    return not _agrees(path, outputs=False)


def _is_untouched(path: Path) -> bool:
    """Neither edited nor run: nothing in it would be lost."""
    return _agrees(path, outputs=True)


def _agrees(path: Path, *, outputs: bool) -> bool:
    try:
        book = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, nbformat.ValidationError):
        return False
    written = book.metadata.get(_KEY, {})
    same = written.get("sources") == _sources(book)
    return same and (not outputs or written.get("outputs") == _outputs(book))


def _sources(book: NotebookNode) -> str:
    return _digest([[cell.cell_type, cell.source] for cell in book.cells])


def _outputs(book: NotebookNode) -> str:
    return _digest([cell.get("outputs", []) for cell in book.cells])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
