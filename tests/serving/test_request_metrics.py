"""Percentiles, TPOT, goodput, concurrency, Little's law: from made-up records and from step events."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labcore.serving.events import RowEvent, StepEvent
from labcore.serving.metrics import (
    RequestRecord,
    Slo,
    in_flight,
    little,
    mean_in_flight,
    percentile,
    records_from_events,
    spread,
    summarize,
)


def record(id: str, start: float, ttft: float, gaps: list[float], error: str | None = None) -> RequestRecord:
    """A request that was given 1 + len(gaps) tokens."""
    times = tuple(np.cumsum([start + ttft, *gaps]).tolist())
    return RequestRecord(id, start, times[0], times[-1], 10, len(times), times, error)


RECORDS = st.lists(
    st.builds(
        record, st.just("r"), st.floats(0, 100), st.floats(0, 10),
        st.lists(st.floats(0, 1), max_size=5), st.sampled_from([None, None, "timeout", "http 500"]),
    ),
    min_size=1, max_size=25,
)  # fmt: skip


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.floats(0, 1))
def test_percentiles_are_numpys(values: list[float], share: float) -> None:
    expected = float(np.percentile(values, share * 100))
    assert percentile(sorted(values), share) == pytest.approx(expected, rel=1e-9, abs=1e-6)


def test_a_spread_leaves_out_what_does_not_exist() -> None:
    found = spread([3.0, None, 1.0, 2.0])
    assert found is not None
    assert (found.count, found.mean, found.p50) == (3, 2.0, 2.0)
    assert found.p99 == pytest.approx(np.percentile([1, 2, 3], 99))
    assert spread([None]) is None


def test_tpot_is_the_mean_after_the_first_token() -> None:
    one = record("a", 10.0, 0.5, [0.1, 0.3, 0.2])
    assert one.ttft_s == pytest.approx(0.5)
    assert one.tpot_s == pytest.approx(0.6 / 3)
    assert one.itl_s == pytest.approx((0.1, 0.3, 0.2))
    assert one.e2e_s == pytest.approx(1.1)


def test_one_token_has_no_tpot() -> None:
    one = record("a", 0.0, 0.5, [])
    assert one.tpot_s is None
    assert one.itl_s == ()
    assert summarize([one]).tpot is None
    assert Slo(tpot_s=0.001).met(one)


def test_little_four_a_second_for_six_seconds_are_24_8_in_flight() -> None:
    records = [record(str(i), i / 4, 0.2, [0.03] * 200) for i in range(1000)]
    law = little(records)
    assert law is not None
    assert law.latency_s == pytest.approx(6.2)
    assert law.arrivals_per_s == pytest.approx(4, rel=0.002)
    assert law.in_flight_expected == pytest.approx(24.8, rel=0.002)
    assert law.in_flight_measured == pytest.approx(24.8, rel=0.002)
    assert summarize(records).concurrency_peak == 25


def test_little_parts_from_what_is_measured_where_the_queue_only_grows() -> None:
    """Two a second for a server that ends one a second: who comes later waits longer, and is not out yet."""
    records = [record(str(i), i / 2, 1 + i - i / 2, []) for i in range(400)]
    law = little(records)
    assert law is not None
    assert law.in_flight_expected > 1.5 * law.in_flight_measured


def test_little_says_nothing_about_requests_that_all_came_before_one_ended() -> None:
    assert little([record("a", 0.0, 1.0, []), record("b", 0.5, 1.0, [])]) is None


def test_goodput_counts_what_kept_both_promises_and_failures_as_broken() -> None:
    records = [
        record("good", 0.0, 0.5, [0.05, 0.05]),
        record("late", 0.0, 2.0, [0.05, 0.05]),
        record("slow", 0.0, 0.5, [0.5, 0.5]),
        record("failed", 0.0, 0.5, [0.05], error="http 500"),
        record("end", 3.0, 0.9, [0.1]),
    ]
    summary = summarize(records, Slo(ttft_s=1.0, tpot_s=0.2))
    assert summary.duration_s == pytest.approx(4.0)
    assert summary.goodput == pytest.approx(2 / 4)
    assert summary.attainment == pytest.approx(2 / 5)
    assert (summary.requests, summary.completed, summary.errors) == (5, 4, {"http 500": 1})
    assert summary.requests_per_s == pytest.approx(4 / 4)
    assert summary.output_tokens == 3 + 3 + 3 + 2
    assert summary.output_tokens_per_s == pytest.approx(11 / 4)
    assert summarize(records, Slo(ttft_s=1.0)).goodput == pytest.approx(3 / 4)
    assert summarize(records).goodput is None
    assert summarize(records).attainment == pytest.approx(4 / 5)


def test_all_failed_is_a_summary_too() -> None:
    failed = [RequestRecord(str(i), 0.0, None, 0.0, 5, 0, (), "no connection") for i in range(3)]
    summary = summarize(failed, Slo(1.0, 1.0))
    assert (summary.completed, summary.errors, summary.ttft, summary.goodput) == (
        0,
        {"no connection": 3},
        None,
        0,
    )
    assert summary.concurrency_peak == 0
    with pytest.raises(ValueError, match="no records"):
        summarize([])


def test_who_ends_makes_room_for_who_starts() -> None:
    records = [record("a", 0.0, 1.0, []), record("b", 1.0, 1.0, []), record("c", 1.5, 1.5, [])]
    assert in_flight(records) == [(0.0, 0), (0.0, 1), (1.0, 0), (1.0, 1), (1.5, 2), (2.0, 1), (3.0, 0)]
    assert mean_in_flight(records, 0.0, 3.0) == pytest.approx(3.5 / 3)
    assert mean_in_flight(records, 1.5, 2.0) == pytest.approx(2.0)


def test_the_clients_own_lateness_is_told() -> None:
    late = RequestRecord("a", 1.0, 3.0, 3.0, 1, 1, (3.0,), sent_s=2.25)
    assert summarize([late, record("b", 0.0, 1.0, [])]).late_s == 1.25


@given(RECORDS, st.floats(0, 5), st.floats(0, 0.5))
@settings(max_examples=80, deadline=None)
def test_what_holds_for_any_records(records: list[RequestRecord], ttft: float, tpot: float) -> None:
    summary = summarize(records, Slo(ttft, tpot))
    assert summary.completed + sum(summary.errors.values()) == summary.requests == len(records)
    assert summary.goodput is not None
    assert summary.goodput <= summary.requests_per_s + 1e-12
    assert 0 <= summary.concurrency_mean <= summary.concurrency_peak + 1e-9
    for values in (summary.ttft, summary.tpot, summary.itl, summary.e2e):
        if values:
            shares = [values.p50, values.p90, values.p95, values.p99]
            assert shares == sorted(shares)
            assert math.isfinite(values.mean)
    area = sum(one.e2e_s for one in records)
    assert summary.concurrency_mean * summary.duration_s == pytest.approx(area, abs=1e-6)
    steps = in_flight(records)
    stepped = sum(n * (after - at) for (at, n), (after, _) in zip(steps, steps[1:], strict=False))
    assert stepped == pytest.approx(area, abs=1e-6)
    assert steps[-1][1] == 0


def step(index: int, *rows: RowEvent, finished: tuple[tuple[str, str], ...] = ()) -> StepEvent:
    """A step of one second that begins at `index`."""
    return StepEvent(index, float(index), 1.0, 0.0, rows, 0, len(rows), 0, 8, finished=finished)  # type: ignore[arg-type]


def row(id: str, start: int, new: int, drawn: int) -> RowEvent:
    return RowEvent(id, "decode" if new == 1 else "prefill", start, new, drawn, ())


def test_records_from_events() -> None:
    events = [
        step(1, row("a", 0, 8, 0)),  # a chunk of the prompt
        step(2, row("a", 8, 4, 1), row("b", 16, 4, 1)),  # b found 16 tokens in the prefix cache
        step(3, row("a", 12, 1, 1), row("b", 20, 3, 3), row("other", 0, 5, 1)),  # a speculation accepted
        step(4, row("a", 0, 14, 1), row("c", 0, 2, 0), finished=(("b", "eos"),)),  # a was preempted
        step(5, row("a", 14, 1, 1), finished=(("a", "length"), ("c", "abort"))),
    ]
    a, b, c, d = records_from_events(events, {"a": 0.5, "b": 2.0, "c": 3.0, "d": 4.0})
    assert (a.id, a.prompt_tokens, a.output_tokens, a.error) == ("a", 12, 4, None)
    assert a.token_times == (3.0, 4.0, 5.0, 6.0)
    assert (a.ttft_s, a.tpot_s, a.e2e_s) == (2.5, 1.0, 5.5)
    assert (b.prompt_tokens, b.output_tokens, b.token_times, b.end_s) == (20, 4, (3.0, 4.0, 4.0, 4.0), 4.0)
    assert b.itl_s == (1.0, 0.0, 0.0)
    assert (c.error, c.first_token_s, c.end_s, c.output_tokens) == ("abort", None, 6.0, 0)
    assert (d.error, d.end_s) == ("unfinished", 6.0)
    assert summarize([a, b, c, d]).errors == {"abort": 1, "unfinished": 1}


def test_no_events_leave_everything_unfinished() -> None:
    (only,) = records_from_events([], {"a": 3.0})
    assert (only.error, only.e2e_s) == ("unfinished", 0.0)
