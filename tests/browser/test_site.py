"""The site as a reader uses it: search, keyboard, a phone, both themes, and nothing from elsewhere."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, sync_playwright

from labcore.lab.site import build
from tests.browser.conftest import FLAGS
from tests.lab.site.test_site import LESSONS, executed

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300), pytest.mark.xdist_group("site")]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing on the console."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A site of two lessons on a server of its own."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "runs" / "executed").mkdir(parents=True)
    for lesson in LESSONS:
        executed(folder / "runs", lesson)
    build.build(folder / "site", folder / "runs", LESSONS)
    handler = functools.partial(Quiet, directory=str(folder / "site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def page(chromium: str, address: str) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        opened = browser.new_page()
        asked: list[str] = []
        opened.on("request", lambda request: asked.append(request.url))
        yield opened
        browser.close()
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


def test_search_answers_by_keyboard_and_leads_to_the_part(page: Page, address: str) -> None:
    page.goto(f"{address}/index.html")
    page.keyboard.press("/")
    page.keyboard.type("one pass, one")
    assert "1 place" in page.locator("#found p").inner_text()
    page.keyboard.press("Enter")
    page.wait_for_url("**/02_two_steps.html#part-1-one-pass-one-token")
    page.fill("#query", "xyzzy")
    assert "Nothing holds “xyzzy”" in page.locator("#found").inner_text()
    page.locator("#query").press("Escape")
    assert page.locator("#found").inner_text() == ""


def test_solutions_are_folded_and_open_by_keyboard(page: Page, address: str) -> None:
    page.goto(f"{address}/02_two_steps.html")
    fold = page.locator("details.solution").first
    assert not fold.locator(".code").is_visible()
    fold.locator("summary").focus()
    page.keyboard.press("Enter")
    assert fold.locator(".code").is_visible()


def test_figures_are_live(page: Page, address: str) -> None:
    page.goto(f"{address}/03_kv_caching.html")
    figure = page.locator("figure.plot").first
    figure.scroll_into_view_if_needed()
    figure.locator(".main-svg").first.wait_for()
    point = figure.locator(".scatterlayer .point").last.bounding_box()
    assert point is not None
    page.mouse.move(point["x"] + point["width"] / 2 - 30, point["y"] + 40)
    page.mouse.move(point["x"] + point["width"] / 2, point["y"] + point["height"] / 2)
    figure.locator(".hovertext").first.wait_for()


@pytest.mark.parametrize("width", [360, 1300])
def test_nothing_is_wider_than_the_window(page: Page, address: str, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    for name in ("index", "02_two_steps", "guides/index"):
        page.goto(f"{address}/{name}.html")
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_way_through_the_lessons(page: Page, address: str) -> None:
    page.set_viewport_size({"width": 1300, "height": 800})
    page.goto(f"{address}/index.html")
    page.get_by_role("link", name="2 · The two-step process").click()
    page.get_by_role("link", name="3 · KV caching explained →").click()
    page.wait_for_url("**/03_kv_caching.html")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the skip link
    assert page.evaluate("document.activeElement.id") == "main"
    assert page.locator("a[href*='guides']").count() == 0  # instructors' pages stand apart
