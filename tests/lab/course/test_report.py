"""The page to hand in: whole, escaped, without a network, and written whole or not at all."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
from collections.abc import Callable
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


@pytest.mark.parametrize("write", [report.markdown, report.html])
def test_without_results_the_page_says_where_to_begin(write: Callable[[report.Report], str]) -> None:
    page = write(report.collect())
    assert "Begin lesson 1" in page
    assert page.count("Not begun.") == 8
    assert re.search(r"Still open: \d+ predictions to lock, \d+ exercises, \d+ hunts\.", page)


@pytest.mark.usefixtures("lesson_two")
def test_everything_saved_stands_on_the_page() -> None:
    page = report.markdown(report.collect("Ada *Lovelace*"))
    assert "# Report of Ada \\*Lovelace\\*" in page
    assert "| 02.1 | How \\| many? | 17 | 16 passes | 1.06× |" in page
    assert "4× (default)" in page
    assert "2 predictions are numbers that were scored, 1 of them within 2×" in page
    states = {"02.1": "right", "02.2": "not right yet", "02.3": "open", "02.A": "bug found", "02.B": "open"}
    for id, state in states.items():
        assert re.search(rf"\| {id} \| [^|]{{4,}} \| {state} \|", page)
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


@pytest.mark.parametrize(
    "entry",
    [
        {"value": 1e300, "measured": 1e-300},
        {"value": 1e300, "measured": 1.0},
        {"value": -3.0, "measured": 0.0},
        {"value": None, "measured": "yes"},
        {"value": [1], "measured": float("nan"), "off_by": "much"},
    ],
)
def test_odd_answers_make_a_page(entry: dict[str, object]) -> None:
    results = Results("01", machine={"total_memory": "much"})
    results.record("predictions", "01.1", **entry)
    results.save()
    page = report.html(report.collect("\udcff"))
    assert "01.1" in page
    assert page.encode()


def test_what_is_far_off_stands_at_the_end_of_the_axis() -> None:
    drawn = error_chart([Point("01.1", 1, 1e9, True), Point("01.2", 1, 0.5, True)])
    assert "1,000,000,000× too high" in drawn
    assert "2× too low" in drawn
    assert drawn.count("<line") == 9  # from 0.0001 to 10,000
    (far, near) = (float(x) for x in re.findall(r'<circle cx="([\d.]+)"', drawn))
    assert near < far < 760


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
    assert CliRunner().invoke(app, ["report", "--force"]).exit_code == 0
    assert (tmp_path / "report.html").read_text(encoding="utf-8") != before
    odd = CliRunner().invoke(app, ["report", "--out", "mine.pdf"])
    assert odd.exit_code == 2
    assert "mine.pdf ends with neither .html nor .md" in odd.output
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


def test_a_page_may_be_read_by_others_and_results_by_nobody_else(tmp_path: Path) -> None:
    page, kept = saved.write_whole(tmp_path / "page.html", "page"), Results("01").save()
    (tmp_path / "plain").touch()
    assert page.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert kept.stat().st_mode & 0o077 == 0


def test_a_file_in_the_way_of_the_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    said = CliRunner().invoke(app, ["report", "--out", "taken/report.html"])
    assert said.exit_code == 2
    assert "could not be written" in said.output


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
