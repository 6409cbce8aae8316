"""`labcore serve` as a process: what it says, how it stops, and what it refuses before it loads anything."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from typer.testing import CliRunner

from labcore.cli import app
from labcore.serving.server import bind

pytestmark = pytest.mark.timeout(60)
LONG = {"model": "story", "prompt": "Once upon a time", "ignore_eos": True}


@contextmanager
def serving(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, and its address by its own words."""
    command = [sys.executable, "-m", "labcore.cli", "serve", "--port", "0", "--device", "cpu", *options]
    quiet = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=quiet, **pipes) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert "Ctrl-C stops" in line, process.communicate()
            yield process, next(word for word in line.split() if word.startswith("http")).removesuffix("/v1,")
        finally:
            process.kill()


def test_a_port_that_is_taken_ends_with_one_sentence_and_code_2() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        done = CliRunner().invoke(app, ["serve", "no-such-model", "--port", str(port)])
    assert done.exit_code == 2
    assert f"Port {port} of 127.0.0.1 is taken; give --port" in done.stderr  # before any model is looked for
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "options",
    [
        ["--max-concurrency", "0"],
        ["--max-connections", "0"],
        ["--api-key", " "],
        ["--grace", "-1"],
        ["--policy", "nobody's"],
        ["--allowed-host", "http://a.org"],
    ],
)
def test_options_that_mean_nothing_end_with_code_2(options: list[str]) -> None:
    assert CliRunner().invoke(app, ["serve", "--port", "0", *options]).exit_code == 2


def test_sigterm_lets_the_running_finish_and_refuses_the_new() -> None:
    found: list[httpx.Response] = []
    with serving("--api-key", "secret", "--name", "mine") as (process, url):
        body, headers = LONG | {"model": "mine", "max_tokens": 700}, {"Authorization": "Bearer secret"}

        def ask() -> None:
            found.append(httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=40))

        asked = threading.Thread(target=ask)
        asked.start()
        while 'running{model_name="mine"} 1.0' not in httpx.get(f"{url}/metrics").text:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        while (health := httpx.get(f"{url}/health")).status_code == 200:
            time.sleep(0.01)
        asked.join()
        assert process.wait(20) == 0
    assert health.status_code == 503
    assert found[0].json()["usage"]["completion_tokens"] == 700


@pytest.mark.parametrize("again", [False, True])
def test_ctrl_c_ends_what_takes_longer_than_the_grace_time(again: bool) -> None:
    found: list[httpx.Response] = []
    with serving("--grace", "600" if again else "0.1") as (process, url):
        body = LONG | {"max_tokens": 1000}
        asked = threading.Thread(
            target=lambda: found.append(httpx.post(f"{url}/v1/completions", json=body, timeout=40))
        )
        asked.start()
        while 'running{model_name="story"} 1.0' not in httpx.get(f"{url}/metrics").text:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        if again:
            while httpx.get(f"{url}/health").status_code == 200:
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
        asked.join()
        said = process.communicate(timeout=20)[1]
    assert process.returncode == 130
    assert "before they were finished: 1." in said
    assert found[0].status_code == 503
    assert "shut down" in found[0].json()["error"]["message"]
