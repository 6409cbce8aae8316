"""`labcore bench crowd`: who runs when, what is counted, and that nobody is left behind; never how fast."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from typer.testing import CliRunner

from labcore.bench import crowd
from labcore.bench.cli import app
from labcore.bench.cli_crowd import table
from labcore.bench.compare_rows import rows_of_record
from labcore.bench.crowd import bench_crowd
from labcore.errors import LabError, OutOfMemory
from tests.bench.made_up import SMALL, folder_of

ABOUT = {"model": "m", "dtype": "float32", "device": "cpu", "threads": 2, "bytes": 10,
         "waiting": {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": None}}  # fmt: skip


class Room:
    """Made-up learners: 60 tokens/s, shared by those that generate at the time."""

    def __init__(self, fails: BaseException | None = None) -> None:
        self.order: list[str] = []
        self.busy: set[int] = set()
        self.ended: list[int] = []
        self.fails = fails
        self.numbers: Iterator[int] = iter(range(100))

    def start(self, *_: str) -> Learner:
        return Learner(self, next(self.numbers))


class Learner:
    def __init__(self, room: Room, number: int) -> None:
        self.room, self.number, self.goes_on, self.ready = room, number, True, False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.room.ended.append(self.number)

    def answer(self) -> dict[str, Any]:
        assert self.goes_on
        if not self.ready:
            self.ready = True
            return ABOUT
        if self.room.fails:
            raise self.room.fails
        return {"tokens": 120 // len(self.room.busy), "seconds": 2.0}

    def generate(self, seconds: float) -> None:
        assert (self.goes_on, seconds) == (True, 2.0)
        self.room.busy.add(self.number)

    def stop(self) -> None:
        self.goes_on = False
        self.room.busy.discard(self.number)

    def go_on(self) -> None:
        self.goes_on = True
        assert not self.room.busy  # all are ready before the first begins


def test_counts_take_turns_and_are_held_against_a_lone_one() -> None:
    room, said = Room(), list[str]()
    result = bench_crowd("m", [4, 2], seconds=2.0, rounds=2, progress=said.append, start=room.start)
    assert said[2:] == [f"round {n} of 2: {count} at once" for n in (1, 2) for count in (1, 2, 4)]
    assert result.samples == {1: [[60.0]] * 2, 2: [[30.0] * 2] * 2, 4: [[15.0] * 4] * 2}
    assert [(row.count, row.tokens_per_s, row.together, row.share) for row in result.rows] == [
        (1, 60.0, 1.0, 1.0), (2, 60.0, 1.0, 0.5), (4, 60.0, 1.0, 0.25),
    ]  # fmt: skip
    assert (result.threads, result.waiting) == (2, ABOUT["waiting"])
    assert sorted(room.ended) == [0, 1, 2, 3]


def test_medians_and_ranges_are_of_ratios_of_the_same_round() -> None:
    samples = {1: [[10.0], [20.0], [40.0]], 2: [[5.0, 5.0], [6.0, 10.0], [40.0, 40.0]]}
    row = crowd._row(2, samples)
    assert (row.tokens_per_s, row.tokens_per_s_range) == (16.0, (10.0, 80.0))
    assert (row.together, row.together_range) == (1.0, (0.8, 2.0))
    assert (row.share, row.share_range) == (0.5, (0.3, 1.0))


@pytest.mark.parametrize("counts", [[], [0, 2], [65]])
def test_counts_that_mean_nothing_are_refused(counts: list[int]) -> None:
    with pytest.raises(LabError, match="give numbers from 1 to 64, such as 1,2,4,8"):
        bench_crowd("m", counts, start=Room().start)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), LabError("it ended.")])
def test_nobody_is_left_behind(error: BaseException) -> None:
    room = Room(error)
    with pytest.raises(type(error)):
        bench_crowd("m", [4], seconds=2.0, start=room.start)
    assert sorted(room.ended) == [0, 1, 2, 3]


def test_a_crowd_that_does_not_fit_is_refused_before_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room()
    monkeypatch.setattr(crowd, "available_memory", lambda _: 29)
    with pytest.raises(OutOfMemory, match=r"4 generations of m at once take .* give --counts up to 3, or a"):
        bench_crowd("m", [4], start=room.start)
    assert room.ended == [0]
    assert bench_crowd("m", [3], seconds=2.0, start=room.start).rows[-1].count == 3


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_processes_generate_at_once_and_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[crowd.Process] = []
    enter: Callable[[crowd.Process], crowd.Process] = crowd.Process.__enter__
    monkeypatch.setattr(crowd.Process, "__enter__", lambda self: started.append(self) or enter(self))
    out, model = tmp_path / "out.json", folder_of(SMALL, tmp_path / "tiny")
    words = ["crowd", "--model", str(model), "--counts", "2", "--seconds", "0.1", "--rounds", "1"]
    done = CliRunner().invoke(app, [*words, "--device", "cpu", "--out", str(out)])
    assert done.exit_code == 0, done.output
    data = json.loads(out.read_text())
    assert [len(rates) for (rates,) in data["result"]["samples"].values()] == [1, 2]
    assert all(rate > 0 for (rates,) in data["result"]["samples"].values() for rate in rates)
    assert {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} < set(data["result"]["waiting"])
    assert len(started) == 2
    assert all(gone(process.pid) for process in started)
    assert [row.unit for row in rows_of_record(data)] == ["tokens/s", "%"] * 2
    assert table(data).row_count == 2


@pytest.mark.parametrize(
    ("does", "sentence"), [("echo 'no such model.' >&2", "^no such model.$"), ("exit 3", "ended with code 3")]
)
def test_a_process_that_ends_says_why(
    does: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{does}\n")
    program.chmod(0o700)
    monkeypatch.setattr(crowd.sys, "executable", str(program))
    with pytest.raises(LabError, match=sentence):
        bench_crowd("m", [1])


def test_counts_are_numbers() -> None:
    done = CliRunner().invoke(app, ["crowd", "--counts", "1;2"])
    assert "--counts '1;2' is no list of numbers" in str(done.exception)
