"""Each lesson in a real browser: it opens, runs whole, answers to its controls, and nothing complains."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Locator

from labcore.lab import runner
from tests.browser import axe
from tests.browser.keyboard import Walk
from tests.browser.page import Notebook

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600), pytest.mark.xdist_group("browser")]

LESSONS = [lesson.number for lesson in runner.lessons()]
Opened = Callable[[str], Notebook]


def _keep(notebook: Notebook, cell: Locator, root: Path, name: str) -> None:
    """Keep the picture that the README shows, when LABCORE_SCREENSHOTS=1 asks for new ones."""
    if os.environ.get("LABCORE_SCREENSHOTS") == "1":
        cell.evaluate("cell => cell.scrollIntoView({block: 'start'})")
        notebook.page.wait_for_timeout(1000)  # plots are drawn when they come into view
        notebook.page.screenshot(path=root / "notebooks" / "images" / f"{name}.png")


@pytest.mark.parametrize("number", LESSONS)
def test_runs_whole_without_an_error(opened: Opened, number: str) -> None:
    notebook = opened(number)
    assert notebook.errors() == []
    assert notebook.plots() > 0
    assert notebook.problems == []


@pytest.mark.parametrize("number", LESSONS)
def test_a_slider_moves_and_its_figure_changes(opened: Opened, number: str) -> None:
    notebook = opened(number)
    slider = notebook.slider()
    cell = notebook.cell_of(slider)
    assert notebook.changes(cell, lambda: notebook.move(slider))
    assert notebook.problems == []


def test_napkin_simulator_answers_to_the_batch(opened: Opened, root: Path) -> None:
    notebook = opened("01")
    notebook.tab("Its load").click()
    slider = notebook.slider("Batch (sequences)")
    cell = notebook.cell_of(slider)
    assert notebook.changes(cell, lambda: notebook.move(slider))
    _keep(notebook, cell, root, "lesson-01-napkin")
    assert notebook.problems == []


def test_debugger_steps_forward_and_back(opened: Opened, root: Path) -> None:
    notebook = opened("02")
    following, previous = notebook.button("Next"), notebook.button("Previous")
    cell = notebook.cell_of(following)
    at_start = notebook.seen(cell)
    assert notebook.changes(cell, following.click)
    assert notebook.changes(cell, previous.click)
    assert notebook.seen(cell) == at_start
    assert notebook.changes(cell, following.click)
    _keep(notebook, cell, root, "lesson-02-debugger")
    assert notebook.problems == []


def test_recomputation_grid_steps_and_takes_the_cache_away(opened: Opened, root: Path) -> None:
    notebook = opened("03")
    following = notebook.button("Next")
    cell = notebook.cell_of(following)
    assert notebook.changes(cell, following.click)
    with_cache_off = notebook.seen(cell)
    _keep(notebook, cell, root, "lesson-03-grid")
    choice = cell.locator("select").first
    assert notebook.changes(cell, lambda: choice.select_option("on"))
    assert notebook.seen(cell) != with_cache_off
    assert notebook.problems == []


def test_block_map_steps_through_the_pool(opened: Opened, root: Path) -> None:
    notebook = opened("04")
    following = notebook.button("Next")
    cell = notebook.cell_of(following)
    for _ in range(3):
        assert notebook.changes(cell, following.click)
    _keep(notebook, cell, root, "lesson-04-blocks")
    assert notebook.problems == []


def test_timeline_changes_with_the_step(opened: Opened, root: Path) -> None:
    notebook = opened("05")
    choice = notebook.page.locator(".labcore-step select").first
    cell = notebook.cell_of(choice)
    _keep(notebook, cell, root, "lesson-05-timeline")
    assert notebook.changes(cell, lambda: choice.select_option(index=0))
    assert notebook.problems == []


def test_roofline_answers_to_batch_and_context(opened: Opened, root: Path) -> None:
    notebook = opened("06")
    for name in ("Batch (sequences)", "Context (tokens each)"):
        slider = notebook.slider(name)
        cell = notebook.cell_of(slider)
        assert notebook.changes(cell, lambda slider=slider: notebook.move(slider))
    _keep(notebook, cell, root, "lesson-06-roofline")
    assert notebook.problems == []


def test_methods_are_tabs_and_the_microscope_answers(opened: Opened, root: Path) -> None:
    notebook = opened("07")
    button = notebook.page.locator(".labcore-method button", has_text="AWQ").first
    cell = notebook.cell_of(button)
    assert notebook.changes(cell, button.click)
    format_ = notebook.page.locator(".labcore-dtype select").first
    cell = notebook.cell_of(format_)
    assert notebook.changes(cell, lambda: format_.select_option("int3"))
    _keep(notebook, cell, root, "lesson-07-microscope")
    assert notebook.problems == []


def test_policies_are_tabs_and_the_block_map_steps(opened: Opened) -> None:
    notebook = opened("08")
    button = notebook.page.locator(".labcore-policy button", has_text="continuous").first
    cell = notebook.cell_of(button)
    assert notebook.changes(cell, button.click)
    following = notebook.button("Next")
    assert notebook.changes(notebook.cell_of(following), following.click)
    assert notebook.problems == []


def test_a_rate_is_a_load_on_the_real_server(opened: Opened, root: Path) -> None:
    """The server listens while the slider moves, answers each load, and is gone when it is told to stop."""
    notebook = opened("08")
    notebook.execute("server.start()")
    slider = notebook.slider("Rate (requests/s)")
    cell = notebook.cell_of(slider)
    for _ in range(4):
        assert notebook.changes(cell, lambda: notebook.move(slider, by=-1))
    (port,) = set(re.findall(r"requests at [^:]*to http://127\.0\.0\.1:(\d+)", notebook.seen(cell)))
    assert _listens(int(port))
    _keep(notebook, cell, root, "lesson-08-dashboard")
    notebook.execute("server.stop()")
    assert not _listens(int(port))
    assert notebook.problems == []


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("number", LESSONS)
def test_axe_finds_nothing_grave_in_either_theme(opened: Opened, number: str) -> None:
    page = opened(number).page
    for theme in reversed(axe.THEMES):
        axe.use_theme(page, theme)
        assert axe.violations(page) == [], theme


def test_axe_would_find_a_control_without_a_name(opened: Opened) -> None:
    page = opened("01").page
    output = page.locator(axe.OUTPUTS).first
    output.evaluate("output => output.insertAdjacentHTML('beforeend', '<button id=nameless></button>')")
    assert ["button-name" in found for found in axe.violations(page)] == [True]
    output.evaluate("output => output.querySelector('#nameless').remove()")


@pytest.mark.parametrize("number", LESSONS)
def test_every_control_is_reached_and_moved_by_keyboard(opened: Opened, number: str) -> None:
    """The focus can be seen on each, and what a move changes is put where a screen reader says it."""
    notebook = opened(number)
    walk = Walk(notebook)
    walk.lesson()
    assert walk.faults == []
    assert len(walk.moved) >= 3
    assert notebook.page.locator(".labcore-said").inner_text()
    assert notebook.problems == []


def test_plots_are_pictures_that_tell_their_title_and_the_sentence_below(opened: Opened) -> None:
    notebook = opened("02")
    pictures = notebook.page.locator(".js-plotly-plot .main-svg[role=img]")
    assert pictures.count() == notebook.plots()
    for picture in pictures.all():
        assert re.match(r"Figure: .+\. .+", picture.get_attribute("aria-label") or "")
