"""Timing: what is called, what is counted. A clock that the test turns, never the machine's."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from labcore.errors import DeviceError, LabError
from labcore.perf.timing import measure, summarize


def _clock_and_work(durations: list[float]) -> tuple[Callable[[], float], Callable[[], None]]:
    """A clock that only moves while the work is done, by the durations given, call after call."""
    now, queue = [0.0], list(durations)

    def work() -> None:
        now[0] += queue.pop(0)

    return lambda: now[0], work


def test_the_warm_up_is_not_counted() -> None:
    clock, work = _clock_and_work([100.0, 50.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    timing = measure(work, warmup=2, repeats=5, clock=clock)
    assert timing.samples == (1.0, 2.0, 3.0, 4.0, 5.0)
    assert timing.median_s == 3.0
    assert timing.spread_s == 2.0  # quartiles 2 and 4
    assert timing.best_s == 1.0
    assert timing.to_dict()["median_s"] == 3.0


def test_one_outlier_moves_neither_median_nor_spread() -> None:
    calm, disturbed = summarize([1.0, 1.1, 1.2, 1.3, 1.4]), summarize([1.0, 1.1, 1.2, 1.3, 60.0])
    assert disturbed.median_s == calm.median_s
    assert disturbed.spread_s == calm.spread_s


def test_real_work_takes_positive_time() -> None:
    timing = measure(lambda: sum(range(10_000)), repeats=5)
    assert len(timing.samples) == 5
    assert min(timing.samples) > 0


def test_the_device_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr("labcore.perf.timing.synchronize", lambda device: events.append("wait"))
    measure(lambda: events.append("work"), warmup=1, repeats=5, clock=lambda: float(len(events)))
    assert events == ["work"] + ["wait", "work", "wait"] * 5


def test_too_few_repeats_are_refused() -> None:
    with pytest.raises(LabError, match="at least 5 repeats"):
        measure(lambda: None, repeats=4)
    with pytest.raises(DeviceError):
        measure(lambda: None, device="cuda:99")
