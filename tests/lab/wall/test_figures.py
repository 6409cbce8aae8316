"""The figures, each with its sentence and its table, and the page that shows them."""

from __future__ import annotations

import re

import pytest

from labcore.lab.wall.devices import MOST_SERIES
from labcore.lab.wall.entry import Point
from labcore.lab.wall.figures import MOST_MARKS, panels
from labcore.lab.wall.names import shown_names
from labcore.lab.wall.page import how_to_share, page_html, plotly_script, wall_data
from tests.lab.wall.made import entry


def test_two_learners_with_one_name_are_told_apart() -> None:
    given = ["Ada", "", "ada", "Ada (2)", "learner 2", "Ada"]
    shown = shown_names([entry(name) for name in given])
    assert shown == ["Ada", "learner 2", "ada (2)", "Ada (2) (2)", "learner 2 (2)", "Ada (3)"]
    assert len({name.casefold() for name in shown}) == len(given)


def test_each_panel_has_its_finding_and_its_table() -> None:
    shared = [entry("Ada"), entry("Bo", speed=50.0, said=160.0, device="Another"), entry("", speed=60.0)]
    guessed, roofs, speeds, progress = panels(shared)
    assert [len(panel.rows) for panel in (guessed, roofs, speeds, progress)] == [1, 2, 2, 8]
    assert guessed.finding == (
        "0 of 3 predictions by 3 learners lie within 2× of the measurement, and half are off by at most "
        "5.33×; the hardest is 02.1, with a median of 5.33×."
    )
    assert roofs.rows[0]["matmul (GFLOP/s)"] == 160.0  # the median, in the dtype that is fastest
    assert "ridge points lie between 3.33 and 6.67 FLOP/byte." in roofs.finding
    assert speeds.finding == (
        "story, float32, batch 1, 3 machines: the median decodes 60 tokens per second, the fastest (A CPU) "
        "100, 2 times the slowest (Another)."
    )
    assert (
        progress.finding
        == "3 learners with 9 exercises right; the furthest lesson is 2, which 3 learners began."
    )
    points = [trace for trace in guessed.figure.data if trace.mode == "markers"]
    assert [list(trace.y) for trace in points] == [[3.0, 160.0, 3.0]]
    assert points[0].text[1] == "Bo: 02.1 (passes)"


def test_every_lesson_has_its_own_symbol() -> None:
    one = entry("Ada")
    many = [one.points[0].model_copy(update={"id": f"{lesson:02}.1"}) for lesson in range(1, 9)]
    figure = panels([one.model_copy(update={"points": many})])[0].figure
    symbols = [trace.marker.symbol for trace in figure.data if trace.mode == "markers"]
    assert len(set(symbols)) == 8


def test_the_band_is_two_times_around_the_diagonal() -> None:
    band, diagonal, *_ = panels([entry()])[0].figure.data
    assert [y / x for x, y in zip(band.x, band.y, strict=True)] == [0.5, 0.5, 2.0, 2.0]
    assert list(diagonal.x) == list(diagonal.y)


def test_sparse_entries_make_no_panel_fail() -> None:
    bare = entry().model_copy(update={"points": [], "speeds": [], "lessons": {}})
    bare = bare.model_copy(update={"machine": bare.machine.model_copy(update={"matmul_flops": {}})})
    for shared in ([], [bare], [bare, entry()], [entry()]):
        assert all(panel.finding.endswith(".") and "nan" not in panel.finding for panel in panels(shared))
    assert "no lesson begun" in panels([bare])[3].finding


def test_a_full_wall_draws_what_can_be_seen_and_counts_all() -> None:
    """500 learners, each with a device of its own and many predictions: what is drawn stays bounded."""
    points = [Point(id=f"02.{n}", said=1.0, measured=2.0 + n, locked=True) for n in range(30)]
    entries = [entry(device=f"CPU {n}").model_copy(update={"points": points}) for n in range(500)]
    predicted, roofed, decoded, _ = panels(entries)
    marks = sum(len(trace.x) for trace in predicted.figure.data if trace.mode == "markers")
    assert 1_000 < marks <= MOST_MARKS
    assert "15,000 predictions by 500 learners" in predicted.finding
    assert predicted.finding.endswith("One of 3 predictions is drawn.")
    assert len(roofed.figure.data) == MOST_SERIES + 1
    assert roofed.rows[-1]["device"] == "others"
    assert sum(row["learners"] for row in roofed.rows) == 500
    assert sum(row["learners"] for row in decoded.rows) == 500
    assert len(decoded.rows) == MOST_SERIES + 1


def test_an_empty_wall_says_what_to_type() -> None:
    assert wall_data([], []) == {"headline": "nobody has shared yet", "faults": [], "panels": []}
    assert page_html("labcore wall share --to x").count("labcore wall share --to x") == 2


def test_many_junk_files_do_not_hide_the_figures() -> None:
    told = wall_data([entry()], [f"{number}.json is no entry." for number in range(9)])["faults"]
    assert len(told) == 6
    assert told[-1] == "4 more files in the folder are no entries."


def test_what_learners_type_survives_a_shell() -> None:
    assert how_to_share("/class folder", "a&b") == "labcore wall share --to '/class folder' --code 'a&b'"
    assert "a&amp;b" in page_html(how_to_share("x", "a&b"))
    assert "amp;amp" not in page_html(how_to_share("x", "a&b"))


@pytest.mark.parametrize("name", ["</script>", "Ada"])
def test_the_page_as_a_file_asks_nobody(name: str) -> None:
    unchecked = entry().model_copy(update={"name": name})
    page = page_html("", wall_data([unchecked], []))
    own = page.replace(plotly_script(), "")
    assert len(own) < len(page) - 1_000_000  # plotly is inside
    assert not re.search(r"(src|href)=\"(?!data:)", own)
    assert own.count("</script>") == 3  # plotly's, the data's, the page's
