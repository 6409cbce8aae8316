"""`labcore bench crowd`: generations at once, each in a process of its own, as in a class on one machine.

Every process loads the model and is ready before anything is measured. Rounds of one, two, four and more take
turns, and whoever has no part in a round is stopped: a waiting process must not take a core.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from labcore.errors import LabError, OutOfMemory
from labcore.perf.machine import available_memory, within_budget

COUNTS = (1, 2, 4, 8)
MOST = 64


class Learner(Protocol):
    """One process of the crowd."""

    def answer(self) -> dict[str, Any]:
        """Its next answer, waited for: about itself when it is ready, and after each `generate`."""

    def generate(self, seconds: float) -> None:
        """Begin to generate for so long; returns at once."""

    def stop(self) -> None:
        """Take no core until `go_on`."""

    def go_on(self) -> None:
        """Be ready again."""


Start = Callable[[str, str, str], AbstractContextManager[Learner]]


@dataclass(frozen=True)
class Row:
    """So many generations at once: medians over the rounds, with the lowest and the highest.

    tokens_per_s: of all together. together: that as a multiple of a lone one's of the same round. share: what
    each has of a lone one's tokens/s, over all of them and all rounds.
    """

    count: int
    tokens_per_s: float
    tokens_per_s_range: tuple[float, float]
    together: float
    together_range: tuple[float, float]
    share: float
    share_range: tuple[float, float]


@dataclass(frozen=True)
class CrowdResult:
    """What was measured, on what. threads: of each process; waiting: the environment that says how threads
    wait for each other; cores: that this process may use. samples: tokens/s of each process, by count and
    round."""

    model: str
    dtype: str
    seconds: float
    rounds: int
    cores: int
    threads: int
    waiting: dict[str, str | None]
    rows: list[Row]
    samples: dict[int, list[list[float]]]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return asdict(self)


def bench_crowd(
    source: str,
    counts: Sequence[int] = COUNTS,
    *,
    seconds: float = 5.0,
    rounds: int = 3,
    device: str = "auto",
    dtype: str = "auto",
    progress: Callable[[str], None] = lambda _: None,
    start: Start | None = None,
) -> CrowdResult:
    """Generations of `seconds` at once, so many of them as counts say and a lone one, in turns.

    Raises LabError for counts out of 1 to 64 and where a process ends, OutOfMemory where they do not all fit.
    No process is left behind, whatever happens.
    """
    several = _checked(counts)
    samples: dict[int, list[list[float]]] = {count: [] for count in several}
    with ExitStack() as stack:
        learners, about = _crowd(start or Process, (source, device, dtype), several[-1], stack, progress)
        for round_ in range(rounds):
            for count in several:
                progress(f"round {round_ + 1} of {rounds}: {count} at once")
                samples[count].append(_at_once(learners[:count], seconds))
    return CrowdResult(
        model=about["model"],
        dtype=about["dtype"],
        seconds=seconds,
        rounds=rounds,
        cores=_cores(),
        threads=about["threads"],
        waiting=about["waiting"],
        rows=[_row(count, samples) for count in several],
        samples=samples,
    )


def _checked(counts: Sequence[int]) -> list[int]:
    """In order, a lone one among them."""
    if not counts or min(counts) < 1 or max(counts) > MOST:
        raise LabError(
            f"Generations at once were asked for as {', '.join(map(str, counts)) or 'nothing'}; give numbers "
            f"from 1 to {MOST}, such as 1,2,4,8."
        )
    return sorted({1, *counts})


def _crowd(
    start: Start, asked: tuple[str, str, str], count: int, stack: ExitStack, progress: Callable[[str], None]
) -> tuple[list[Learner], dict[str, Any]]:
    """The processes, ready and stopped, and what the first says of itself. It tells what room each takes."""
    progress("starting the first process")
    first = stack.enter_context(start(*asked))
    about = first.answer()
    first.stop()
    _ensure_room(about, count)
    progress(f"starting {count - 1} more")
    others = [stack.enter_context(start(*asked)) for _ in range(count - 1)]
    for other in others:
        other.answer()
        other.stop()
    return [first, *others], about


def _ensure_room(about: dict[str, Any], count: int) -> None:
    free, device = available_memory(about["device"]), about["device"]
    if (count - 1) * about["bytes"] > free:
        raise OutOfMemory(
            f"{count} generations of {about['model']} at once take {count * about['bytes'] / 1e9:.2f} GB, "
            f"{about['bytes'] / 1e9:.2f} GB each, and {(free + about['bytes']) / 1e9:.2f} "
            f"GB{within_budget(device)} are there for them on {device}; give --counts up to "
            f"{1 + free // about['bytes']}, or a smaller --model."
        )


def _at_once(learners: Sequence[Learner], seconds: float) -> list[float]:
    """Tokens/s of each, all begun at the same time."""
    for learner in learners:
        learner.go_on()
    for learner in learners:
        learner.generate(seconds)
    answers = [learner.answer() for learner in learners]
    for learner in learners:
        learner.stop()
    return [answer["tokens"] / answer["seconds"] for answer in answers]


def _row(count: int, samples: dict[int, list[list[float]]]) -> Row:
    alone = [rates[0] for rates in samples[1]]
    sums = [sum(rates) for rates in samples[count]]
    times = [total / one for total, one in zip(sums, alone, strict=True)]
    shares = [rate / one for rates, one in zip(samples[count], alone, strict=True) for rate in rates]
    return Row(
        count=count,
        tokens_per_s=statistics.median(sums),
        tokens_per_s_range=(min(sums), max(sums)),
        together=statistics.median(times),
        together_range=(min(times), max(times)),
        share=statistics.median(shares),
        share_range=(min(shares), max(shares)),
    )


def _cores() -> int:
    mine = getattr(os, "sched_getaffinity", None)
    return len(mine(0)) if mine else os.cpu_count() or 1


class Process:
    """A `crowd_worker`: killed at the end of the block, stopped or not."""

    def __init__(self, source: str, device: str, dtype: str) -> None:
        self._asked = (source, device, dtype)

    def __enter__(self) -> Self:
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "labcore.bench.crowd_worker", *self._asked, str(os.getpid())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, encoding="utf-8",
        )  # fmt: skip
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def answer(self) -> dict[str, Any]:
        """Raises LabError with its last words where it has ended."""
        assert self._process.stdout
        if line := self._process.stdout.readline():
            answer: dict[str, Any] = json.loads(line)
            return answer
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().strip().splitlines()
        raise LabError(said[-1] if said else f"A generation of the crowd ended with code {code}; try fewer.")

    def generate(self, seconds: float) -> None:
        """Write the line that it waits for."""
        assert self._process.stdin
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()

    def stop(self) -> None:
        """Stopped by a signal: a thread that spins takes a core as well."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Continued by a signal."""
        self._process.send_signal(signal.SIGCONT)
