"""An executed lesson as the parts of its page: prose, code, what it gave, and folded solutions."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from labcore.lab import exercises, hunts
from labcore.lab.course.outline import calls
from labcore.lab.display import PLOTLY_MIME
from labcore.lab.exercises.desk import source_of
from labcore.lab.site import text

_WIDGET = "application/vnd.jupyter.widget-view+json"
_LONG = 30  # lines of code beyond which a cell is folded


@dataclass(frozen=True)
class Section:
    """What search finds: a heading, its address on the page, the words under it."""

    title: str
    anchor: str
    words: str


@dataclass
class Page:
    """A page's body as HTML, its second headings, its sections, and how many figures it draws."""

    body: str = ""
    contents: list[tuple[str, str]] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    figures: int = 0


def lesson_page(executed: Path, pages: Collection[str], scrub: Callable[[str], str]) -> Page:
    """The page of one executed notebook. `scrub` takes what is of the machine that built it out of texts."""
    cells = json.loads(executed.read_text(encoding="utf-8"))["cells"]
    page, parts = Page(), []
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            html = text.markdown(source, pages)
            _note_headings(page, html)
            parts.append(f'<div class="prose">{html}</div>')
        elif cell["cell_type"] == "code" and "injected-parameters" not in cell["metadata"].get("tags", []):
            parts.append(_code_cell(page, cell, source, scrub))
    page.body = "\n".join(parts)
    return page


def document_page(source: str, pages: Collection[str]) -> Page:
    """The page of a Markdown document, such as an instructor's guide."""
    page = Page(body=text.markdown(source, pages))
    _note_headings(page, page.body)
    page.body = f'<div class="prose">{page.body}</div>'
    return page


def _note_headings(page: Page, html: str) -> None:
    """Keep headings for the contents, and everything between two of them for search."""
    pieces = re.split(r'(<h[1-3] id="[^"]*">.*?</h[1-3]>)', html, flags=re.DOTALL)
    for heading, after in zip(pieces[1::2], pieces[2::2], strict=True):
        anchor, title = re.findall(r'id="([^"]*)"', heading)[0], text.plain(heading)
        if heading.startswith("<h2"):
            page.contents.append((anchor, title))
        page.sections.append(Section(title, anchor, text.plain(after)))
    if len(pieces) == 1 and page.sections:  # prose that goes on under the heading before
        last = page.sections[-1]
        page.sections[-1] = Section(last.title, last.anchor, f"{last.words} {text.plain(html)}")


def _code_cell(page: Page, cell: Mapping[str, Any], source: str, scrub: Callable[[str], str]) -> str:
    shown = text.code(source)
    if source.count("\n") >= _LONG:
        lines = source.count("\n") + 1
        shown = f"<details><summary>{lines} lines of code</summary>{shown}</details>"
    outputs = "".join(_output(page, output, scrub) for output in cell.get("outputs", []))
    given = f'<div class="outputs">{outputs}</div>' if outputs else ""
    return f'<div class="cell">{shown}{given}{_solutions(source)}</div>'


def _output(page: Page, output: Mapping[str, Any], scrub: Callable[[str], str]) -> str:
    """One output by the richest of its forms that a page without a kernel can show."""
    data = output.get("data", {})
    words = scrub("".join(output.get("text", data.get("text/plain", ""))))
    if PLOTLY_MIME in data:
        page.figures += 1
        return _figure(data[PLOTLY_MIME], words.removeprefix("[figure] "), scrub)
    if _WIDGET in data:
        what = words.strip("[]").split(":")[0]
        return f'<p class="live">Controls of the live lesson: {escape(what)}.</p>'
    if "text/html" in data:
        return scrub("".join(data["text/html"]))
    return text.preformatted(words) if words.strip() else ""


def _figure(figure: Mapping[str, Any], title: str, scrub: Callable[[str], str]) -> str:
    """A place for the figure, as high as it will be, and its data; the page's script draws it there."""
    height = figure["layout"].get("height", 450)
    # "<" as JSON writes it cannot end the script element
    data = scrub(json.dumps({"data": figure["data"], "layout": figure["layout"]})).replace("<", "\\u003c")
    return (
        f'<figure class="plot" style="min-height:{height}px"><div role="img" '
        f'aria-label="{escape(title)}; the sentence and the table below say the same"></div>'
        f'<script type="application/json">{data}</script></figure>'
    )


def _solutions(source: str) -> str:
    """Behind a cell that checks an exercise or holds a hunt: hints and solution, folded."""
    folded = []
    for kind, id in calls(source):
        if kind == "exercises":
            task = exercises.find(id)
            answer = source_of(task.solution) if callable(task.solution) else repr(task.solution)
            folded.append(_fold(f"Exercise {id}: hints and a solution", task.hints, answer, task.why))
        elif kind == "hunts":
            bug = hunts.find(id)
            title = f"Hunt {id}: hints and the code without the bug"
            folded.append(_fold(title, bug.hints, source_of(bug.original)))
    return "".join(folded)


def _fold(title: str, hints: tuple[str, ...], answer: str, why: str = "") -> str:
    rungs = "".join(f"<li>{escape(hint)}</li>" for hint in hints)
    reason = f"<p>{escape(why)}</p>" if why else ""
    return (
        f'<details class="solution"><summary>{escape(title)}</summary><ol>{rungs}</ol>'
        f"{text.code(answer)}{reason}</details>"
    )
