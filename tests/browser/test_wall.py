"""The wall in a real browser: an entry that arrives while the page is open changes its figures."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import sync_playwright

from labcore.lab.wall.collector import create_app
from labcore.lab.wall.folder import Folder
from labcore.serving.server import bind
from tests.browser.conftest import FLAGS
from tests.lab.wall.test_wall import SECRET, entry

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120), pytest.mark.xdist_group("wall")]


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A collector on a thread."""
    with bind("127.0.0.1", 0) as sock:
        server = uvicorn.Server(uvicorn.Config(create_app(Folder(tmp_path)), log_level="warning"))
        thread = threading.Thread(target=server.run, args=([sock],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        server.should_exit = True
        thread.join(timeout=10)


def test_figures_change_when_somebody_shares(address: str, chromium: str, tmp_path: Path) -> None:
    asked: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1920, "height": 1080})
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        headline = page.locator("#headline")
        page.wait_for_function("document.getElementById('headline').textContent.startsWith('Nobody')")
        for number, name in enumerate(("Ada", "Ada"), 1):
            shared = entry(name, speed=100.0 * number)
            day = {"shared_at": f"2026-01-0{number}T00:00:00+00:00"}
            Folder(tmp_path).put(shared.model_copy(update=day), SECRET)
            page.wait_for_function(f"document.getElementById('headline').textContent === '{number} learners'")
        assert headline.inner_text() == "2 learners"
        assert page.locator("section .main-svg").first.is_visible()
        points = "document.querySelectorAll('section [role=img]')[2].data.map(trace => trace.text).flat()"
        assert page.evaluate(points) == ["Ada", "Ada (2)"]
        assert "Ada (2)'s A CPU with 200" in page.locator("section p").nth(2).inner_text()
        browser.close()
    assert [url for url in asked if not url.startswith((address, "data:"))] == []
