"""The knee: found where a made-up server's capacity lies."""

from __future__ import annotations

import pytest

from labcore.serving.load import Point, sweep
from labcore.serving.metrics import RequestRecord, Slo
from labcore.serving.workload import make_workload

CAPACITY = 6.5  # requests/s of the made-up server: one after the other


def served(rate: float, n: int = 400, give_up: float | None = None) -> list[RequestRecord]:
    """A queue in front of a server that takes the same time for everybody."""
    free, records = 0.0, []
    for arrival in make_workload(n, rate=rate, prompt="fixed:1", output="fixed:10"):
        begin = max(free, arrival.at_s)
        error = "timeout" if give_up is not None and begin - arrival.at_s > give_up else None
        free = begin if error else begin + 1 / CAPACITY
        records.append(RequestRecord(arrival.id, arrival.at_s, free, free, 1, 10, (free,), error))
    return records


def test_a_sweep_stops_behind_the_knee() -> None:
    asked: list[float] = []

    def run(rate: float) -> list[RequestRecord]:
        asked.append(rate)
        return served(rate)

    found = sweep(run, [1, 2, 4, 8, 16, 32], Slo(ttft_s=1.0))
    assert asked == [1, 2, 4, 8]
    assert [point.carried for point in found.points] == [True, True, True, False]
    assert (found.knee, found.found) == (4, True)
    assert found.sentence == "The knee lies between 4 and 8 requests/s."


def test_refining_closes_in_on_the_capacity() -> None:
    told: list[Point] = []
    found = sweep(served, [2, 4, 8, 16], Slo(ttft_s=1.0), refine=4, on_point=told.append)
    assert len(told) == len(found.points) == 3 + 4
    rates = [point.rate for point in found.points]
    assert rates == sorted(rates)
    assert found.knee is not None
    first = next(point.rate for point in found.points if not point.carried)
    assert first - found.knee == pytest.approx(4 / 2**4)
    assert 4 < found.knee < CAPACITY


def test_without_a_promise_throughput_alone_decides() -> None:
    found = sweep(served, [1, 2, 4, 8, 16, 32])
    assert [point.rate for point in found.points] == [1, 2, 4, 8, 16]
    assert found.knee == 8  # more than 4 brought, and 16 brought no more
    assert all(point.summary.goodput is None for point in found.points)


def test_failures_are_too_much_as_well() -> None:
    found = sweep(lambda rate: served(rate, give_up=1.0), [2, 4, 8, 16])
    assert found.knee == 4
    assert sum(found.points[-1].summary.errors.values()) > 40


def test_a_knee_outside_of_what_was_tried() -> None:
    low = sweep(served, [1, 2], Slo(ttft_s=1.0), refine=3)
    assert (low.knee, low.found, len(low.points)) == (2, False, 2)
    assert "higher" in low.sentence
    high = sweep(served, [20, 40], Slo(ttft_s=1.0))
    assert (high.knee, high.found, len(high.points)) == (None, True, 1)
    assert high.sentence == "Even 20 requests/s are too much."
    below = sweep(served, [20], Slo(ttft_s=1.0), refine=3)
    assert below.knee == 5


@pytest.mark.parametrize("rates", [[], [0, 1], [2, 1], [1, 1]])
def test_rates_that_do_not_rise_are_refused(rates: list[float]) -> None:
    with pytest.raises(ValueError, match="rise"):
        sweep(served, rates)
