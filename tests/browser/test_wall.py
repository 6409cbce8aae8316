"""The wall in a real browser: entries that arrive while the page is open change its figures."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import Page, sync_playwright

from labcore.lab.wall.collector import create_app
from labcore.lab.wall.folder import Folder
from labcore.serving.server import bind
from tests.browser.axe import violations
from tests.browser.conftest import FLAGS
from tests.lab.wall.made import SECRET, entry

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120), pytest.mark.xdist_group("wall")]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "class").mkdir()
    return Folder(tmp_path / "class")


@pytest.fixture
def address(folder: Folder) -> Iterator[str]:
    """A collector on a thread."""
    with bind("127.0.0.1", 0) as sock:
        app = create_app(folder, how="labcore wall share --to HERE")
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=2))
        thread = threading.Thread(target=server.run, args=([sock],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        server.should_exit = True
        thread.join(timeout=10)


@pytest.fixture
def page(chromium: str) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        yield browser.new_page(viewport={"width": 1920, "height": 1080})
        browser.close()


def until_headline(page: Page, text: str) -> None:
    page.wait_for_function("text => document.getElementById('headline').textContent === text", arg=text)


def test_figures_change_when_somebody_shares(address: str, folder: Folder, page: Page) -> None:
    asked: list[str] = []
    problems: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(address)
    until_headline(page, "nobody has shared yet")
    assert page.locator("#empty code").first.inner_text() == "labcore wall share --to HERE"
    assert page.locator("#empty").is_visible()
    for number, name in enumerate(("Ada", "Ada"), 1):
        folder.put(entry(name, speed=100.0 * number), SECRET)
        until_headline(page, "1 learner" if number == 1 else "2 learners")
    assert page.locator("section .main-svg").first.is_visible()
    points = "document.querySelectorAll('section [role=img]')[2].data.map(trace => trace.text).flat().sort()"
    assert page.evaluate(points) == ["Ada", "Ada (2)"]
    assert "the fastest (A CPU) 200" in page.locator("section > p").nth(2).inner_text()
    assert page.locator("section table").count() == 4
    assert not page.locator("#empty").is_visible()
    assert violations(page, "body") == []

    page.keyboard.press("Tab")  # the first thing to reach unfolds the first table
    assert page.evaluate("document.activeElement.textContent") == "Predicted against measured, as a table"
    page.keyboard.press("Enter")
    assert page.locator("section table").first.is_visible()

    (folder.path / "junk.json").write_text("{", encoding="utf-8")
    page.wait_for_function(
        "document.getElementById('faults').textContent.startsWith('junk.json is no entry')"
    )
    assert page.locator("section table").first.is_visible()  # what was unfolded stays so
    shutil.move(folder.path, folder.path.with_name("away"))
    page.wait_for_function("document.getElementById('trouble').textContent.includes('cannot keep or read')")
    shutil.move(folder.path.with_name("away"), folder.path)
    page.wait_for_function("document.getElementById('trouble').textContent === ''")
    assert page.locator("section .main-svg").first.is_visible()
    assert [url for url in asked if not url.startswith((address, "data:"))] == []
    assert problems == []
