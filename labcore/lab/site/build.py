"""Build the site from executed lessons: whole, or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import plotly
from rich.console import Console

import labcore
from labcore import atomic
from labcore.errors import LessonError
from labcore.lab import runner
from labcore.lab.course import outline
from labcore.lab.course.progress import Progress
from labcore.lab.figures.course_map import course_map
from labcore.lab.results import Results, read_saved
from labcore.lab.site import text
from labcore.lab.site.pages import Page, Section, document_page, lesson_page
from labcore.lab.site.scrub import scrubber
from labcore.lab.units import gigabytes

_HERE = Path(__file__).parent
MARKER = "site.json"  # what tells a site from any other folder


def execute_lessons(out: Path, console: Console) -> Path:
    """Run every lesson into `out`. Raises LessonError naming those that failed."""
    runs = runner.run_lessons(runner.lessons(), runner.Settings(), out, console=console)
    failed = [f"{run.lesson.name} ({run.error})" for run in runs if not run.ok]
    if failed:
        raise LessonError(f"The site was not built, since lessons failed: {'; '.join(failed)}.")
    return out


def build(out: Path, runs: Path, lessons: Sequence[runner.Lesson] | None = None) -> int:
    """Write the site into `out` from executed notebooks in `runs`; returns how many figures it draws.

    The old site stays until the new one is whole. Raises LessonError when `out` holds something else, when a
    lesson was not executed, and when the disk is full.
    """
    if out.exists() and not (out / MARKER).is_file() and any(out.iterdir()):
        raise LessonError(f"{out} holds something that is no site; choose another --out, or empty it.")
    chosen = list(lessons or runner.lessons())
    missing = [lesson.name for lesson in chosen if not _executed(runs, lesson).is_file()]
    if missing:
        raise LessonError(
            f"{runs} has no executed {', '.join(missing)}; run `labcore lessons run --all --out {runs}`, "
            "or leave --from away."
        )
    part = atomic.beside(out)
    try:
        figures = _write_all(part, runs, chosen)
        _swap(part, out)
    except OSError as error:
        raise LessonError(
            f"The site could not be written ({error.strerror or error}); what was in {out} is unchanged: "
            "make room or choose another --out."
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return figures


def _executed(runs: Path, lesson: runner.Lesson) -> Path:
    return runs / f"{lesson.name}.learner.ipynb"


def _swap(part: Path, out: Path) -> None:
    """Put the finished folder in the place of the old one."""
    old = out.with_name(out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.replace(out, old)
    os.replace(part, out)
    shutil.rmtree(old, ignore_errors=True)


def _write_all(part: Path, runs: Path, lessons: Sequence[runner.Lesson]) -> int:
    outlines = [outline.outline(lesson) for lesson in lessons]
    names = {entry.name for entry in outlines}
    scrub = scrubber(runs)
    pages = {lesson.name: lesson_page(_executed(runs, lesson), names, scrub) for lesson in lessons}
    guides = _guides(names)
    writer = _Writer(part, outlines)
    before_and_after = zip([None, *outlines[:-1]], [*outlines[1:], None], strict=True)
    for entry, around in zip(outlines, before_and_after, strict=True):
        writer.lesson(entry, pages[entry.name], _made_on(runs, entry.number), around)
    figures = sum(page.figures for page in pages.values()) + writer.front()
    writer.guides(guides)
    writer.assets(pages, guides)
    return figures


def _guides(names: set[str]) -> dict[str, Page]:
    """The instructor guides beside the notebooks, by lesson."""
    found = sorted((runner.notebooks_dir() / "guides").glob("*.md"))
    texts = {path.stem: path.read_text(encoding="utf-8") for path in found if path.stem in names}
    return {name: document_page(source, set()) for name, source in texts.items()}


def _made_on(runs: Path, number: str) -> str:
    """When and on what the numbers of a page were measured."""
    saved = read_saved(runs / "executed" / Results(number).path.name)
    machine = saved.get("machine") or {}
    if not machine:
        return "The machine that measured these numbers was not recorded."
    return (
        f"Measured {saved['saved_at'][:10]} on {machine['name']} ({machine['device']}, "
        f"{gigabytes(machine['total_memory'])}, {machine['threads']} threads), "
        f"Python {machine['python_version']}, torch {machine['torch_version']}, "
        f"labcore {machine['labcore_version']}. Your machine's numbers will differ."
    )


class _Writer:
    """Renders templates into the folder."""

    def __init__(self, folder: Path, outlines: Sequence[outline.Outline]) -> None:
        self.folder, self.outlines = folder, outlines
        loader = jinja2.FileSystemLoader(_HERE / "templates")
        self.templates = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
        common = {"lessons": outlines, "version": labcore.__version__, "day": f"{datetime.now(UTC):%Y-%m-%d}"}
        self.templates.globals.update(common, int=int)
        for name in ("assets", "guides", "images"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def page(self, name: str, template: str, **values: Any) -> None:
        """One file."""
        html = self.templates.get_template(template).render(root="../" * name.count("/"), **values)
        (self.folder / name).write_text(html, encoding="utf-8")

    def lesson(self, entry: outline.Outline, page: Page, made: str, around: tuple[Any, Any]) -> None:
        """A lesson's page."""
        before, after = around
        self.page(
            f"{entry.name}.html", "lesson.html", entry=entry, page=page, made=made, before=before, after=after
        )

    def front(self) -> int:
        """The front page with its map; returns how many figures it has."""
        figure = course_map([Progress(entry) for entry in self.outlines], states=False)
        data = figure.to_json().replace("<", "\\u003c")
        self.page("index.html", "index.html", figure=data, title=figure.layout.title.text)
        return 1

    def guides(self, guides: dict[str, Page]) -> None:
        """The instructors' pages, apart from the lessons: no lesson links to them."""
        by_name = {entry.name: entry for entry in self.outlines}
        entries = [by_name[name] for name in guides]
        self.page("guides/index.html", "guides.html", entries=entries)
        for name, page in guides.items():
            self.page(f"guides/{name}.html", "guide.html", entry=by_name[name], page=page)

    def assets(self, pages: dict[str, Page], guides: dict[str, Page]) -> None:
        """Script, style, plotly, pictures and the two search indexes, each a file of this site."""
        assets = self.folder / "assets"
        for path in (_HERE / "assets").iterdir():
            shutil.copy(path, assets / path.name)
        (assets / "code.css").write_text(text.code_style(), encoding="utf-8")
        shutil.copy(Path(plotly.__file__).parent / "package_data" / "plotly.min.js", assets)
        titles = {entry.name: f"{int(entry.number)} · {entry.title}" for entry in self.outlines}
        for name, documents in (("search-lessons.js", pages), ("search-guides.js", guides)):
            _index(assets / name, {titles[key]: (key, page.sections) for key, page in documents.items()})
        for picture in (runner.notebooks_dir() / "images").glob("*.png"):
            shutil.copy(picture, self.folder / "images" / picture.name)
        (self.folder / MARKER).write_text(json.dumps({"labcore": labcore.__version__}), encoding="utf-8")


def _index(path: Path, documents: dict[str, tuple[str, list[Section]]]) -> None:
    """What search looks through, as a script: a page that was opened as a file may not fetch JSON."""
    rows = [
        {
            "page": title,
            "title": section.title,
            "address": f"{name}.html#{section.anchor}",
            "words": section.words,
        }
        for title, (name, sections) in documents.items()
        for section in sections
    ]
    path.write_text(f"window.LAB_SEARCH = {json.dumps(rows, ensure_ascii=False)};\n", encoding="utf-8")
