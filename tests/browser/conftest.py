"""A real JupyterLab on this machine's loopback, and a real Chromium in front of it.

The server runs on a copy of the notebooks, with this interpreter's kernel and with configuration folders of
its own, so that nothing of the user's JupyterLab is read or written.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import BrowserContext, sync_playwright

from labcore.lab import jupyter, runner
from tests.browser.page import Notebook

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
NO_BROWSER = (
    "no browser: install one (on Debian: apt-get install chromium), or set LABCORE_BROWSER to the path of one"
)
TOKEN = "only-on-loopback"


@dataclass
class Server:
    """One JupyterLab process; everything it reads and writes of its own lies under `home`."""

    home: Path
    port: int
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def notebooks(self) -> Path:
        return self.home / "notebooks"

    @property
    def log(self) -> str:
        return (self.home / "server.log").read_text(encoding="utf-8", errors="replace")

    def environment(self) -> dict[str, str]:
        names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
        names += ("JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "LABCORE_RESULTS")
        return jupyter.environment() | {name: str(self.home / name.lower()) for name in names}

    def start(self) -> None:
        words = jupyter.command(next(self.notebooks.glob("*.ipynb")), browser=False, port=self.port)
        words += [f"--IdentityProvider.token={TOKEN}", "--ServerApp.ip=127.0.0.1"]
        words += ["--LabApp.expose_app_in_browser=True"]  # lets a test read the notebook's own state
        with (self.home / "server.log").open("wb") as log:
            self.process = subprocess.Popen(
                words, env=self.environment(), cwd=self.home, stdout=log, stderr=subprocess.STDOUT
            )
        self._wait()

    def _wait(self) -> None:
        for _ in range(240):
            assert self.process is not None
            assert self.process.poll() is None, self.log
            try:
                with urllib.request.urlopen(self.url("api/status"), timeout=5):
                    return
            except OSError:
                time.sleep(0.25)
        raise AssertionError(f"JupyterLab did not answer within 60 s.\n{self.log}")

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(timeout=30)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{path}?token={TOKEN}"


def _copy_unexecuted(source: Path, target: Path) -> None:
    """Copy a notebook without execution counts, so that a count means: it ran here."""
    book = nbformat.read(source, as_version=4)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.execution_count, cell.outputs = None, []
    nbformat.write(book, target)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser to drive. Without one the tests are skipped; in CI they fail."""
    found = os.environ.get("LABCORE_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(NO_BROWSER)
    return str(found)


@pytest.fixture(scope="module")
def server(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """JupyterLab over a copy of the lessons."""
    started = Server(tmp_path_factory.mktemp("jupyter"), _free_port())
    started.notebooks.mkdir()
    copies = [started.notebooks / lesson.path.name for lesson in runner.lessons()]
    for lesson, copy in zip(runner.lessons(), copies, strict=True):
        _copy_unexecuted(lesson.path, copy)
    jupyter.trust(copies, started.environment())
    try:
        started.start()
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def browser(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserContext]:
    """Chromium without a window, with a profile of its own.

    It ends with its tests: while Playwright is up, its event loop counts as running in this thread, and no
    test that a worker runs afterwards could start one.
    """
    profile = tmp_path_factory.mktemp("profile")
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=chromium,
            headless=True,
            args=list(FLAGS),
            viewport={"width": 1440, "height": 1000},
        )
        yield context
        context.close()


@pytest.fixture(scope="module")
def opened(server: Server, browser: BrowserContext) -> Callable[[str], Notebook]:
    """A lesson by number, opened and run once; later tests go on with the same page."""
    pages: dict[str, Notebook] = {}

    def open_and_run(number: str) -> Notebook:
        if number not in pages:
            (lesson,) = runner.find([number])
            notebook = pages[number] = Notebook(browser.new_page())
            notebook.open(server.url(f"lab/tree/{lesson.path.name}") + "&reset")
            notebook.run_all()
        return pages[number]

    return open_and_run
