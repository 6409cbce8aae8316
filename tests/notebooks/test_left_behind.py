"""Lesson 8 runs a server: however its kernel ends, no port, process or thread of it stays behind."""

from __future__ import annotations

import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty
from typing import Any

import nbformat
import psutil  # ipykernel brings it
import pytest
from jupyter_client.manager import KernelManager

from labcore.lab import runner
from labcore.lab.jupyter import KERNEL_ARGUMENTS, kernel_environment
from labcore.lab.runner import Lesson, LessonRun

pytestmark = [pytest.mark.notebook, pytest.mark.timeout(300), pytest.mark.xdist_group("08_serving")]

(LESSON,) = runner.find(["08"])
MARK = "LABCORE_LEFT_BEHIND_TEST"
NEEDED = ("MODEL: str", "lab.start(", "lab.serve(")  # the cells of the lesson that bring its server up
THREADS = "import threading; print([t.name for t in threading.enumerate() if t.name.startswith('labcore-')])"
Execute = Callable[[Lesson, str], LessonRun]


class Kernel:
    """A kernel of this interpreter that runs cells of the lesson; it and its children carry a mark."""

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel(
            env={**os.environ, MARK: mark}, extra_arguments=KERNEL_ARGUMENTS, cwd=str(LESSON.path.parent)
        )
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def run(self, code: str) -> str:
        """What a cell prints; fails where it raises."""
        printed: list[str] = []

        def told(message: dict[str, Any]) -> None:
            content = message["content"]
            printed.append(content.get("text", "") + content.get("data", {}).get("text/plain", ""))

        reply = self.client.execute_interactive(code, output_hook=told, timeout=120)
        assert reply["content"]["status"] == "ok", reply["content"]
        return "\n".join(printed)

    def bring_up(self) -> int:
        """Run what the lesson needs for its server; returns its port."""
        cells = [cell.source for cell in nbformat.read(LESSON.path, as_version=4).cells]
        chosen = [next(source for source in cells if words in source) for words in NEEDED]
        shown = "\n".join(self.run(source) for source in chosen)
        return int(re.findall(r"http://127\.0\.0\.1:(\d+)/v1", shown)[0])

    def end(self) -> None:
        self.client.stop_channels()
        if self.manager.has_kernel:
            self.manager.shutdown_kernel(now=True)


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    with kernel_environment(tmp_path):
        started = Kernel(uuid.uuid4().hex)
    yield started
    started.end()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _alive(mark: str) -> list[psutil.Process]:
    """Every process that inherited the mark, whoever its parent is by now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def _gone(port: int, mark: str, within_s: float = 15.0) -> bool:
    """Whether port and processes are gone in time."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if not _listens(port) and not _alive(mark):
            return True
        time.sleep(0.1)
    return False


def test_a_killed_kernel_leaves_nothing(kernel: Kernel) -> None:
    port = kernel.bring_up()
    assert _listens(port)
    assert len(_alive(kernel.mark)) >= 1
    # In the middle of a load, as a learner would: the cell does not end, the kernel does.
    load = "lab.watch_load(server, 20, seconds=60, prompt=8, output=8)"
    kernel.client.execute(load)
    _wait_for_output(kernel, "answered")
    kernel.manager.provisioner.process.kill()  # SIGKILL: no handler, no atexit
    assert _gone(port, kernel.mark)


def _wait_for_output(kernel: Kernel, words: str) -> None:
    """Until a cell that runs has shown these words."""
    for _ in range(200):
        try:
            message = kernel.client.get_iopub_msg(timeout=30)
        except Empty:
            break
        if words in str(message["content"]):
            return
    raise AssertionError(f"the cell never showed {words!r}")


def test_a_kernel_that_is_shut_down_leaves_nothing(kernel: Kernel) -> None:
    port = kernel.bring_up()
    assert _listens(port)
    kernel.manager.shutdown_kernel(now=False)
    assert _gone(port, kernel.mark)


def test_the_end_of_the_lesson_leaves_nothing_in_a_kernel_that_goes_on(kernel: Kernel) -> None:
    port = kernel.bring_up()
    assert "labcore-server" in kernel.run(THREADS)
    kernel.run("lab.finish()")
    assert not _listens(port)
    assert kernel.run(THREADS).strip() == "[]"
    assert "answered" in kernel.run("lab.watch_load(server, 20, seconds=0.5, prompt=8, output=8)")
    assert kernel.run(THREADS).strip() == "[]", "a load on a stopped server brings it up for that load only"


def test_the_whole_lesson_leaves_no_port(execute: Execute) -> None:
    run = execute(LESSON, "solution")
    assert run.ok
    ports = set(re.findall(r"http://127\.0\.0\.1:(\d+)/v1", run.executed.read_text(encoding="utf-8")))
    assert ports
    assert [port for port in ports if _listens(int(port))] == []
