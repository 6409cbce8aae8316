"""The page to hand in: whole, escaped, without a network, and written whole or not at all."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from labcore.cli import app
from labcore.errors import LessonError
from labcore.lab import results as saved
from labcore.lab.course import report
from labcore.lab.course.error_chart import Point, error_chart
from labcore.lab.results import Results

VOID = {"meta", "hr", "br", "line", "rect", "circle", "img", "link"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LABCORE_RESULTS", str(tmp_path / "results"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "results"


@pytest.fixture
def lesson_two() -> None:
    machine = {"name": "A <b>CPU</b>", "device": "cpu", "total_memory": 8e9, "threads": 2}
    results = Results("02", machine=machine)
    results.record("predictions", "02.1", question="How | many?", value="17", number=17.0, unit="passes")
    results.record("predictions", "02.1", locked=True, measured=16, off_by=1.0625)
    results.record("predictions", "02.2", question="How long?", value="4×", measured=1.0, off_by=4.0)
    results.record("exercises", "02.1", title="Write the loop", passed=True, attempted=True)
    results.record("exercises", "02.2", title="FLOPs", passed=False, attempted=True)
    results.record("exercises", "02.3", title="Bytes", passed=False, attempted=False)
    results.record("exercises", "02.A", title="The hunt", passed=True)
    results.record("measurements", "decode", value=81.25)
    results.save()


class Balanced(HTMLParser):
    """Every tag that opens closes, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_without_results_the_page_says_where_to_begin() -> None:
    page = report.markdown(report.collect())
    assert "Begin lesson 1" in page
    assert page.count("Not begun.") == 8


@pytest.mark.usefixtures("lesson_two")
def test_everything_saved_stands_on_the_page() -> None:
    page = report.markdown(report.collect("Ada *Lovelace*"))
    assert "# Report of Ada \\*Lovelace\\*" in page
    assert "| 02.1 | How \\| many? | 17 | 16 passes | 1.06× |" in page
    assert "4× (default)" in page
    assert "2 predictions are numbers that were scored, 1 of them within 2×" in page
    for row in ("02.1 | Write the loop | right", "02.2 | FLOPs | not right yet", "02.3 | Bytes | open"):
        assert f"| {row} |" in page
    assert "| 02.A | The hunt | bug found |" in page
    assert "81.2" in page


@pytest.mark.usefixtures("lesson_two")
def test_html_stands_alone_and_escapes() -> None:
    page = report.html(report.collect("<script>alert(1)</script>"))
    assert "<script" not in page
    assert "A &lt;b&gt;CPU&lt;/b&gt;" in page
    assert not re.search(r"(src|href)=", page)
    assert "1 of 2 predictions lie in the band" in page
    checked = Balanced()
    checked.feed(page)
    assert checked.open == []


def test_a_damaged_file_is_named_on_the_page(folder: Path) -> None:
    folder.mkdir()
    (folder / "lesson-03.json").write_text("{", encoding="utf-8")
    page = report.markdown(report.collect())
    assert page.count("lesson-03.json is damaged") == 2  # in the summary and at its lesson
    assert page.count("Not begun.") == 7


def test_the_chart_places_points_by_their_ratio() -> None:
    drawn = error_chart([Point("01.1", 1, 1.0, True), Point("01.2", 1, 10.0, False)])
    truth = re.search(r'<circle cx="([\d.]+)"', drawn)
    line = re.search(r'<text x="([\d.]+)"[^>]*>as measured', drawn)
    assert truth is not None
    assert line is not None
    assert truth[1] == line[1]
    assert drawn.count("<rect") == 2  # the band, and the default's hollow square


@pytest.mark.usefixtures("lesson_two")
def test_command_writes_and_overwrites_nothing_unasked(tmp_path: Path) -> None:
    first = CliRunner().invoke(app, ["report", "--name", "Ada"])
    assert first.exit_code == 0
    assert "Written to report.html" in first.output
    before = (tmp_path / "report.html").read_text(encoding="utf-8")
    again = CliRunner().invoke(app, ["report"])
    assert again.exit_code == 2
    assert "report.html is there already" in again.output
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == before
    assert CliRunner().invoke(app, ["report", "--out", "mine.md"]).exit_code == 0
    assert (tmp_path / "mine.md").read_text(encoding="utf-8").startswith("# Report")


def test_a_full_disk_is_one_sentence_and_the_old_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = saved.write_whole(tmp_path / "page.html", "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(saved.os, "replace", full)
    with pytest.raises(LessonError, match=r"page\.html could not be written \(No space left on device\)"):
        saved.write_whole(target, "new")
    assert target.read_text(encoding="utf-8") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """A mounted file system of 64 KiB, where the machine lets us."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no small file system can be mounted here")
    try:
        target = saved.write_whole(disk / "page.html", "old")
        with pytest.raises(LessonError, match="No space left on device"):
            saved.write_whole(target, "x" * 200_000)
        assert target.read_text(encoding="utf-8") == "old"
        assert [path.name for path in disk.iterdir()] == ["page.html"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)
