"""Lesson 8: policies on one engine, lengths, chunks, prefixes, preemption, guesses. No timing is judged.

The engine is real and its model tiny; time is counted, not measured: a clock that ticks when it is read.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from labcore.errors import ConfigError, LessonError
from labcore.lab import (
    serving_load,
    serving_paper,
    serving_runs,
    serving_spans,
)
from labcore.lab.figures import serving as figures
from labcore.lab.serving_play import play
from labcore.lab.serving_runs import PolicyRun
from labcore.serving import Static
from labcore.serving.metrics import Slo
from tests.lab.serving_load import Ticking, busy_model, request, some


@pytest.fixture(scope="module")
def runs() -> dict[str, PolicyRun]:
    return serving_runs.run_policies(
        busy_model(), requests=some(), places=4, slo=Slo(0.2, 0.05), watch=Ticking()
    )


# Policies


def test_every_policy_gives_the_same_answers(runs: dict[str, PolicyRun]) -> None:
    assert list(runs) == ["one-by-one", "static", "dynamic", "continuous"]
    wanted = {one.id: one.stopping.max_new_tokens for one in some()}
    assert max(len(set(tokens)) for tokens in runs["continuous"].answers.values()) > 4, "varied answers"
    for run in runs.values():
        assert run.answers == runs["continuous"].answers
        assert {id: len(tokens) for id, tokens in run.answers.items()} == wanted
        assert all(record.ok and record.output_tokens == wanted[record.id] for record in run.records)
    assert "same tokens under each" in serving_runs.policies_finding(runs)
    spoilt = runs | {"static": replace(runs["static"], answers={})}
    assert "that is a bug" in serving_runs.policies_finding(spoilt)


def test_what_policies_use(runs: dict[str, PolicyRun]) -> None:
    assert runs["continuous"].utilisation == runs["one-by-one"].utilisation == 1
    assert runs["one-by-one"].occupancy == 0.25
    assert runs["static"].utilisation < 1
    tokens = sum(one.stopping.max_new_tokens for one in some())
    for run in runs.values():
        assert run.useful_row_steps == tokens
        assert run.row()["useful rows (%)"] == pytest.approx(100 * tokens / run.row_steps)
    first = {policy: run.summary.ttft for policy, run in runs.items()}
    assert first["continuous"]
    assert all(one and first["continuous"].p50 <= one.p50 for one in first.values())


def test_the_real_engine_wastes_what_arithmetic_says() -> None:
    batch = [request(f"r{i}", 4, length) for i, length in enumerate((2, 6, 3, 4))]
    found = serving_runs.run_policies(
        busy_model(), ("static", "continuous"), batch, places=4, watch=Ticking()
    )
    assert found["static"].utilisation == 0.625
    assert len(found["static"].events) == len(found["continuous"].events) == 6


def test_findings_and_rows_hold_the_numbers(runs: dict[str, PolicyRun]) -> None:
    run = runs["static"]
    assert f"{len(run.events)} steps" in run.finding()
    assert f"{100 * run.utilisation:.0f} % of the rows" in run.finding()
    rows = run.rows()
    assert [row["request"] for row in rows] == [one.id for one in some()]
    assert all(row["E2E (ms)"] >= row["TTFT (ms)"] > 0 for row in rows)
    assert rows[0]["TPOT (ms)"] is None, "one token has no time a further token"
    assert [row["policy"] for row in serving_runs.policy_rows(runs)] == list(runs)
    assert "kept the promise (%)" in run.row()
    assert "kept the promise (%)" not in replace(run, slo=None).row()


def test_sizes_and_policies_are_checked() -> None:
    with pytest.raises(ConfigError, match="There is no policy 'fifo'"):
        serving_runs.run_policies(busy_model(), ("fifo",), some(2), watch=Ticking())
    with pytest.raises(LessonError, match="can reach 500 together"):
        serving_load.make_load(busy_model(), prompt=50, output=50)
    own = serving_runs.run_policies(busy_model(), (Static(2),), some(4), watch=Ticking())
    assert max(len(event.rows) for event in own["static"].events) == 2


def test_dynamic_batches_do_not_wait_for_ever() -> None:
    asked = [request("a", 4, 3, 0.0), request("b", 4, 3, 5.0)]
    found = serving_runs.run_policies(
        busy_model(), ("static", "dynamic"), asked, places=2, timeout_s=0.1, watch=Ticking()
    )
    static, dynamic = (run.records[0].ttft_s for run in found.values())
    assert static
    assert dynamic
    assert static > 5
    assert 0.1 < dynamic < 0.2


def test_arrivals_follow_the_capacity() -> None:
    lengths: dict[str, Any] = {"prompt": 4, "output": 6}
    carries = serving_load.capacity(busy_model(), places=4, watch=Ticking(), **lengths)
    asked = serving_load.near_capacity(
        busy_model(), n=60, load=0.5, places=4, watch=Ticking(), **lengths
    )
    span = (asked[-1].arrival_s or 0) - (asked[0].arrival_s or 0)
    assert 59 / span == pytest.approx(0.5 * carries, rel=0.4)  # a Poisson process of 60
    assert asked == serving_load.near_capacity(
        busy_model(), n=60, load=0.5, places=4, watch=Ticking(), **lengths
    )


# Gantt and blocks


@pytest.mark.parametrize("policy", serving_runs.GENERATIONS)
def test_phases_follow_each_other_without_gaps(runs: dict[str, PolicyRun], policy: str) -> None:
    run = runs[policy]
    found = serving_spans.spans(run.events, run.arrivals)
    for record in run.records:
        mine = [span for span in found if span.id == record.id]
        assert mine[0].start_s == record.start_s
        assert all(one.end_s == other.start_s for one, other in zip(mine, mine[1:], strict=False))
        served = [span for span in mine if span.phase != serving_spans.LINGERING]
        assert served[-1].end_s == pytest.approx(record.end_s)
        assert mine[0].phase == serving_spans.WAITING
    lingers = any(span.phase == serving_spans.LINGERING for span in found)
    assert lingers == (policy in ("static", "dynamic"))


def test_a_whole_prompt_holds_others_up() -> None:
    asked = [request("a", 4, 20), request("b", 40, 2, 0.03)]
    events, _ = play(busy_model(), asked, "continuous", chunked=False, token_budget=16, watch=Ticking())
    found = serving_spans.spans(events, {"a": 0.0, "b": 0.03})
    assert [span.phase for span in found if span.id == "a"] == [
        serving_spans.WAITING, serving_spans.PREFILL, serving_spans.DECODE, serving_spans.HELD,
        serving_spans.DECODE,
    ]  # fmt: skip
    assert serving_spans.span_rows(found)[0]["held up by others' prompts (ms)"] > 0


def test_the_gantt_chart_draws_the_phases(runs: dict[str, PolicyRun]) -> None:
    run = runs["static"]
    figure = figures.gantt_figure(run, end_s=3.0)
    found = serving_spans.spans(run.events, run.arrivals)
    drawn = sum(sum(bar.x) for bar in figure.data)
    assert drawn == pytest.approx(1e3 * sum(span.end_s - span.start_s for span in found))
    assert [bar.name for bar in figure.data] == [
        phase for phase in serving_spans.PHASES if any(span.phase == phase for span in found)
    ]
    assert figure.layout.xaxis.range == (0, 3060)
    assert len({(bar.marker.color, bar.marker.pattern.shape) for bar in figure.data}) == len(figure.data)
    bare = figures.gantt_figure(run.events)
    assert serving_spans.WAITING not in [bar.name for bar in bare.data], "events tell of no arrivals"


def test_the_queue_is_counted(runs: dict[str, PolicyRun]) -> None:
    figure = figures.queue_figure(runs)
    for line, run in zip(figure.data, runs.values(), strict=True):
        assert line.name == run.policy
        assert line.y[-1] == 0
        assert min(line.y) >= 0
        assert max(line.y) >= max(event.waiting for event in run.events)


def test_percentiles_are_the_summarys(runs: dict[str, PolicyRun]) -> None:
    figure = figures.percentiles_figure(runs)
    found = runs["one-by-one"].summary
    drawn = [tuple(trace.x) for trace in figure.data[:3]]
    spreads = [one for one in (found.ttft, found.itl, found.e2e) if one]
    assert drawn == [(one.p50 * 1e3, one.p99 * 1e3) for one in spreads]
    assert len(figure.data) == 12


# On paper


def test_golden_utilisation() -> None:
    example, *rest = serving_paper.utilisation_rows()
    assert example["in theory (%)"] == "62.5"
    theory = {row["batch"]: row["in theory (%)"] for row in rest}
    assert (theory[1], theory[8], theory[16]) == ("100.0", "36.8", "29.6")
    for row in rest:
        assert float(row["drawn (%)"]) == pytest.approx(float(row["in theory (%)"]), abs=0.5)
    static, continuous = serving_paper.static_rows()
    assert (static["steps"], static["of use"]) == (6, "4 4 3 2 1 1")
    assert continuous["rows, step by step"] == static["of use"]


def test_golden_little_and_places() -> None:
    assert serving_paper.little_rows()[0]["in flight"] == "24.8"
    assert serving_paper.concurrent_rows()[0] == {
        "of each request": "2,048 tokens reserved", "slots": 15_728, "requests at once": 7,
    }  # fmt: skip


def test_golden_chunks() -> None:
    rows = serving_paper.chunk_rows()
    assert len(rows) == 9
    assert {row["decode (tokens)"] for row in rows} == {8}
    assert [row["prompt (tokens)"] for row in rows] == [504] * 8 + [64]
    assert [row["gives its first token"] for row in rows] == [False] * 8 + [True]


def test_golden_stall_and_published() -> None:
    step, products, whole = serving_paper.stall_rows()
    assert (step["ms"], products["ms"], products["steps"]) == ("6.87", "177", "26")
    assert float(whole["ms"]) > 177
    gains = [row["published"] for row in serving_paper.served_rows()]
    assert gains == ["36.9×", "2–4×", "up to 22×", "23×", "2.6×", "7.4×"]
    assert all(row["source"] and row["against"] for row in serving_paper.served_rows())
