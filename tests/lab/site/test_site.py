"""The site from small executed notebooks: text, links, folds, search index, and what is refused."""

from __future__ import annotations

import errno
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import plotly.graph_objects as go
import pytest

from labcore.errors import LessonError
from labcore.lab import runner
from labcore.lab.display import figure_bundle
from labcore.lab.site import build, text
from labcore.lab.site.scrub import scrubber

LESSONS = runner.find(["02", "03"])


class Addresses(HTMLParser):
    """Every address that a page names, and every id that it has."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "a":
            self.links.append(values.get("href", ""))
        elif "href" in values or "src" in values:
            self.loads.append(values.get("href", values.get("src", "")))
        if "id" in values:
            self.ids.append(values["id"])


def executed(runs: Path, lesson: runner.Lesson) -> None:
    """A notebook as papermill leaves it: the lesson's prose, one cell that checks, one figure, one widget."""
    book = nbformat.read(lesson.path, as_version=4)
    figure = figure_bundle(go.Figure(go.Scatter(y=[1, 2]), layout={"title": {"text": "</script> & more"}}))
    home = str(Path.home())
    outputs = [
        nbformat.v4.new_output("display_data", data=figure),
        nbformat.v4.new_output(
            "display_data",
            data={
                "application/vnd.jupyter.widget-view+json": {"model_id": "x"},
                "text/plain": "[controls: they work where this notebook has a running kernel]",
            },
        ),
        nbformat.v4.new_output("stream", text=f"kept in {home}/x\n10%\r100%\n\x1b[31mred\x1b[0m <b>\n"),
    ]
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs = outputs if "lab.predict" in cell.source else []
    nbformat.write(book, runs / f"{lesson.name}.learner.ipynb")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    (folder / "executed").mkdir(parents=True)
    for lesson in LESSONS:
        executed(folder, lesson)
    return folder


@pytest.fixture
def site(tmp_path: Path, runs: Path) -> Path:
    build.build(tmp_path / "site", runs, LESSONS)
    return tmp_path / "site"


def test_no_address_leaves_the_site_and_no_link_is_dead(site: Path) -> None:
    pages = {page: Addresses(page) for page in site.rglob("*.html")}
    assert len(pages) >= 4
    for page, found in pages.items():
        assert len(set(found.ids)) == len(found.ids), page
        for address in found.loads:
            assert address.startswith("data:") or (page.parent / address).is_file(), (page.name, address)
        for address in found.links:
            if re.match(r"https?://", address):
                continue  # a source that the text names; nothing is loaded from it
            target, _, fragment = address.partition("#")
            other = (page.parent / target).resolve() if target else page
            assert other.is_file(), (page.name, address)
            assert not fragment or fragment in pages[other].ids or fragment == "main", (page.name, address)


def test_a_lesson_page_has_everything_that_the_notebook_had(site: Path, runs: Path) -> None:
    page = (site / f"{LESSONS[0].name}.html").read_text(encoding="utf-8")
    book = nbformat.read(runs / f"{LESSONS[0].name}.learner.ipynb", as_version=4)
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    plots = sum("application/vnd.plotly.v1+json" in output.get("data", {}) for output in outputs)
    assert page.count('<figure class="plot"') == plots == 4
    assert "</script> & more" not in page  # a title cannot end its script
    assert page.count("Controls of the live lesson: controls.") == plots
    assert page.count('<details class="solution">') == 7  # five exercises, two hunts
    assert "<math" in page
    assert "100%\nred &lt;b&gt;" in page
    assert "10%\r" not in page
    assert "kept in ~/x" in page
    assert str(Path.home()) + "/" not in page


def test_search_finds_every_part_by_its_heading(site: Path) -> None:
    script = (site / "assets" / "search-lessons.js").read_text(encoding="utf-8")
    rows = json.loads(script.removeprefix("window.LAB_SEARCH = ").removesuffix(";\n"))
    titles = {row["title"] for row in rows}
    assert {"Part 1 · One pass, one token", "Part 2 · Why it is allowed"} <= titles
    for row in rows:
        name, _, anchor = row["address"].partition("#")
        assert f'id="{anchor}"' in (site / name).read_text(encoding="utf-8")
    assert any("decode" in row["words"] for row in rows)


def test_links_to_what_is_not_on_the_site_become_text() -> None:
    html = text.markdown("[a](02_two_steps.ipynb) [b](../README.md) [c](https://x.org/y)", {"02_two_steps"})
    assert '<a href="02_two_steps.html">a</a> b <a href="https://x.org/y">c</a>' in html


def test_money_is_no_formula_and_html_is_text() -> None:
    html = text.markdown("It costs $2 an hour, $3 a day: $n+1$ <script>x</script>", ())
    assert html.count("<math") == 1
    assert "$2 an hour, $3 a day" in html
    assert "<script>" not in html


def test_folders_are_scrubbed_at_whole_names_only(tmp_path: Path) -> None:
    scrub = scrubber(tmp_path)
    assert scrub(f"{tmp_path}/executed/a.json") == "runs/executed/a.json"
    assert scrub(f"{tmp_path}s") != "runss"


def test_a_second_build_replaces_the_first_and_leaves_nothing_beside(site: Path, runs: Path) -> None:
    (site / "old.html").touch()
    build.build(site, runs, LESSONS)
    assert not (site / "old.html").exists()
    assert sorted(path.name for path in site.parent.iterdir()) == ["results", "runs", "site"][-2:]


def test_a_folder_that_is_no_site_is_left_alone(tmp_path: Path, runs: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").touch()
    with pytest.raises(LessonError, match="holds something that is no site"):
        build.build(mine, runs, LESSONS)
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]


def test_a_lesson_that_was_not_executed_is_named(tmp_path: Path, runs: Path) -> None:
    with pytest.raises(LessonError, match=r"has no executed 04_kv_cache_deeper; run `labcore lessons run"):
        build.build(tmp_path / "site", runs, [*LESSONS, *runner.find(["04"])])


def test_a_full_disk_leaves_the_old_site(site: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(path.name for path in site.rglob("*"))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(build.shutil, "copy", full)
    with pytest.raises(LessonError, match="could not be written .No space left on device."):
        build.build(site, runs, LESSONS)
    assert sorted(path.name for path in site.rglob("*")) == before
    assert not list(site.parent.glob("*.part"))


def test_failed_lessons_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(lessons: list[runner.Lesson], *_: object, **__: object) -> list[runner.LessonRun]:
        error = "cell 2: ValueError: x"
        return [runner.LessonRun(each, "learner", tmp_path, 1, 9, 1.0, error) for each in lessons]

    monkeypatch.setattr(runner, "run_lessons", run)
    with pytest.raises(LessonError, match=r"01_introduction \(cell 2: ValueError: x\); 02_"):
        build.execute_lessons(tmp_path, None)  # type: ignore[arg-type]
