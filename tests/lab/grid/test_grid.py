"""The grid: names and resuming here, and a real dask cluster of two workers, one of which is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from rich.console import Console
from typer.testing import CliRunner

from labcore.cli import app
from labcore.errors import LessonError
from labcore.lab import grid, runner
from labcore.lab.grid import cluster
from labcore.lab.runner import Lesson, Settings

PARAMETERS = """MODEL: str = "story"
DEVICE: str = "auto"
SCALE: str = "auto"
MODE: str = "learner"
SEED: int = 0"""


def notebook(folder: Path, name: str, code: str) -> Lesson:
    """A lesson of two cells: the parameters, and the code."""
    cells = [
        nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(code),
    ]
    book = nbformat.v4.new_notebook(cells=cells)
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = folder / f"{name}.ipynb"
    nbformat.write(book, path)
    return Lesson(path)


@pytest.fixture
def console() -> Console:
    return Console(width=200, record=True)


def test_a_grid_is_lessons_times_devices_times_models(tmp_path: Path) -> None:
    lessons = [notebook(tmp_path, name, "1") for name in ("01_a", "02_b")]
    made = grid.jobs(lessons, Settings(), ["cpu", "cuda:0"], ["story", "shape:x/y"])
    names = [job.name for job in made]
    assert len(set(names)) == len(names) == 8
    assert names[:2] == ["01_a.learner.cpu.story", "01_a.learner.cpu.shape-x-y"]
    assert len({job.fingerprint for job in made}) == 8
    assert [job.name for job in grid.jobs(lessons, Settings(mode="solution"), [], [])] == [
        "01_a.solution",
        "02_b.solution",
    ]


def test_a_grid_here_keeps_everything_and_resumes(tmp_path: Path, console: Console) -> None:
    lessons = [notebook(tmp_path, "01_a", "print(DEVICE)"), notebook(tmp_path, "02_b", "1 / 0")]
    todo = grid.jobs(lessons, Settings(), ["cpu", "other"], [])
    out = tmp_path / "out"
    outcomes = grid.run_grid(todo[:1] + todo[2:], grid.Grid(out), console)
    assert [outcome.ok for outcome in outcomes] == [True, False, False]
    assert "ZeroDivisionError" in (outcomes[1].error or "")
    assert "cpu" in (out / "01_a.learner.cpu.ipynb").read_text(encoding="utf-8")
    again = grid.run_grid(todo, grid.Grid(out, resume=True), console)
    assert [outcome.ok for outcome in again] == [True, True, False, False]
    assert "1 of 4 are done already" in console.export_text()
    assert len(json.loads((out / "grid.json").read_text(encoding="utf-8"))) == 4
    changed = [replace(job, notebook=job.notebook.replace("DEVICE)", "SEED)")) for job in todo[:1]]
    assert grid.run_grid(changed, grid.Grid(out, resume=True), console)[0].seconds != again[0].seconds


def test_a_damaged_list_is_named(tmp_path: Path, console: Console) -> None:
    (tmp_path / "grid.json").write_text("[{}", encoding="utf-8")
    todo = grid.jobs([notebook(tmp_path, "01_a", "1")], Settings(), [], [])
    with pytest.raises(LessonError, match=r"grid\.json is damaged .* leave --resume away"):
        grid.run_grid(todo, grid.Grid(tmp_path, resume=True), console)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "dask://nowhere", "dask://a b:1", "8786"])
def test_an_address_of_another_form_is_refused(address: str) -> None:
    with pytest.raises(LessonError, match="give dask://HOST:PORT"):
        cluster.connect(address)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_nobody_at_the_address_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "ANSWER_S", 1)
    said = CliRunner().invoke(app, ["lessons", "run", "01", "--executor", f"dask://127.0.0.1:{free_port()}"])
    assert said.exit_code == 2
    assert "No scheduler answers at tcp://127.0.0.1:" in said.output


class Cluster:
    """A scheduler and workers as processes of their own, ended with the test."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.processes: list[subprocess.Popen[bytes]] = []
        self.start("scheduler", "--port", str(self.port), "--no-dashboard")

    def start(self, kind: str, *words: str) -> subprocess.Popen[bytes]:
        """A process of this interpreter; workers without a nanny, so that a killed one stays dead."""
        code = f"import sys; from distributed.cli.dask_{kind} import main; sys.exit(main())"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (self.folder / f"{kind}-{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", code, "--host", "127.0.0.1", *words],
                cwd=self.folder, stdout=log, stderr=subprocess.STDOUT, env=environment,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def worker(self, *words: str) -> subprocess.Popen[bytes]:
        address = f"tcp://127.0.0.1:{self.port}"
        return self.start("worker", address, "--no-nanny", "--no-dashboard", *(words or ("--nthreads", "1")))

    @property
    def executor(self) -> str:
        return f"dask://127.0.0.1:{self.port}"

    def close(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def dask(tmp_path: Path) -> Iterator[Cluster]:
    folder = tmp_path / "dask"
    folder.mkdir()
    made = Cluster(folder)
    yield made
    made.close()
    assert all(process.poll() is not None for process in made.processes)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_worker_that_dies_gives_its_lesson_to_another(
    tmp_path: Path, dask: Cluster, console: Console
) -> None:
    """Two workers; the one that takes the marked lesson first is killed in the middle of it."""
    mark, gate = tmp_path / "begun", tmp_path / "gate"
    # The kernel's parent is the worker. The first run leaves its number and waits to be killed.
    waits = (
        f"import os, pathlib, time\nmark = pathlib.Path({str(mark)!r})\nfirst = not mark.exists()\n"
        f"if first:\n    mark.write_text(str(os.getppid()))\n"
        f"while first and not pathlib.Path({str(gate)!r}).exists():\n    time.sleep(0.1)\nprint('whole')"
    )
    short = [notebook(tmp_path, f"0{i}_b", "print(2)") for i in (2, 3, 4)]
    lessons = [notebook(tmp_path, "01_a", waits), *short]
    dask.worker()
    dask.worker()

    def kill() -> None:
        while not mark.exists() or not mark.read_text(encoding="utf-8"):
            time.sleep(0.1)
        os.kill(int(mark.read_text(encoding="utf-8")), signal.SIGKILL)
        time.sleep(0.5)
        gate.touch()  # the orphaned kernel of the dead worker ends

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    todo = grid.jobs(lessons, Settings(), [], [])
    outcomes = grid.run_grid(todo, grid.Grid(tmp_path / "out", dask.executor), console)
    killer.join(timeout=10)
    assert [outcome.error for outcome in outcomes] == [None] * 4
    assert "whole" in (tmp_path / "out" / "01_a.learner.ipynb").read_text(encoding="utf-8")
    said = console.export_text()
    assert re.search(r"Worker tcp://127.0.0.1:\d+ is gone; what it had not finished runs elsewhere", said)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *(f"{lesson.name}.learner.ipynb" for lesson in lessons),
        "grid.json",
    ]


@pytest.mark.slow
def test_what_keeps_a_cluster_from_measuring_is_said(tmp_path: Path, dask: Cluster, console: Console) -> None:
    todo = grid.jobs([notebook(tmp_path, "01_a", "1")], Settings(), [], [])
    with pytest.raises(LessonError, match=r"had no worker for 1 s; start some"):
        grid.run_grid(todo, grid.Grid(tmp_path, dask.executor, wait_s=1), console)
    assert "has no worker yet; waiting up to 1 s" in console.export_text()
    dask.worker("--nthreads", "3")
    with pytest.raises(LessonError, match=r"has 3 threads\); start workers with --nthreads 1"):
        grid.run_grid(todo, grid.Grid(tmp_path, dask.executor), console)


@pytest.mark.notebook
@pytest.mark.timeout(600)
def test_a_real_lesson_comes_back_whole(tmp_path: Path, dask: Cluster, console: Console) -> None:
    dask.worker()
    todo = grid.jobs(runner.find(["03"]), Settings(), ["cpu"], [])
    (outcome,) = grid.run_grid(todo, grid.Grid(tmp_path / "out", dask.executor), console)
    assert outcome.error is None
    assert outcome.cells == outcome.code_cells > 10
    results = json.loads((tmp_path / "out" / f"{outcome.job}.json").read_text(encoding="utf-8"))
    assert results["lesson"] == "03"
    assert results["predictions"]
