"""Lesson 8's server: a real one on the loopback, loads, the dashboard; and that nothing stays behind."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from labcore.lab import display, serving_http, serving_live
from labcore.lab import session as sessions
from labcore.lab.figures import serving_live as figures
from labcore.lab.serving_http import LiveServer
from labcore.lab.serving_live import LiveRun, Sample, load_url
from labcore.lab.widgets import serving_live as widgets
from labcore.serving.load import LoadTestError
from labcore.serving.load import runner as load_runner
from labcore.serving.metrics import RequestRecord, Slo
from tests.lab.serving_load import busy_model

pytestmark = pytest.mark.timeout(60)
SHORT = {"prompt": 4, "output": 4}
LOAD = {**SHORT, "vocab_size": 64}


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    made = LiveServer(busy_model(), places=4).start()
    yield made
    made.stop()


def _listens(url: str) -> bool:
    parts = urlsplit(url)
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex((parts.hostname, parts.port)) == 0


def _ours() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("labcore-")}


# The server


def test_a_stopped_server_leaves_no_port_and_no_thread() -> None:
    before = _ours()
    made = LiveServer(busy_model())
    assert not made.running
    url = made.start().url
    assert made.start().url == url, "a second start changes nothing"
    assert _listens(url)
    assert _ours() > before
    made.stop()
    assert not made.running
    assert not _listens(url)
    assert _ours() == before
    made.stop()


def test_a_stopped_server_runs_for_one_load() -> None:
    made = LiveServer(busy_model())
    with made.at_work() as url:
        assert _listens(url)
    assert not made.running
    assert not _listens(url)
    with made.start().at_work() as url:
        pass
    assert _listens(url), "one that ran before goes on"
    made.stop()


def test_finish_stops_the_server_and_another_replaces_it(session: sessions.Session) -> None:
    first = serving_http.serve(session.model)
    where = first.url
    second = serving_http.serve(session.model)
    assert not first.running
    assert not _listens(where)
    assert _listens(second.url)
    where = second.url
    sessions.finish()
    assert not second.running
    assert not _listens(where)


def test_one_request_over_the_wire(server: LiveServer, capsys: pytest.CaptureFixture[str]) -> None:
    answer = serving_http.ask(server, [1, 2, 3], max_tokens=5)
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (3, 5)
    shown = capsys.readouterr().out
    assert f"POST {server.url}/v1/completions" in shown
    assert "3 tokens in, 5 out" in shown


def test_patient_users_are_held_against_the_engine(server: LiveServer) -> None:
    found = serving_http.patient_users(server, 1000.0, users=2, n=6, **SHORT)
    assert found.summary.completed == 6
    assert found.summary.concurrency_peak <= 2
    assert found.share == pytest.approx(found.summary.requests_per_s / 1000)
    assert "2 users, each of whom waits" in found.finding()
    assert found.slo.ttft_s == pytest.approx(2 / found.summary.requests_per_s)
    assert found.slo.tpot_s == pytest.approx(2 * found.slo.ttft_s * 6 / found.summary.output_tokens)


# Loads


def test_a_load_is_watched_from_both_sides(server: LiveServer) -> None:
    seen: list[int] = []
    slo = Slo(10.0, 10.0)
    run = load_url(server.url, 40, seconds=0.5, slo=slo, on_sample=lambda s: seen.append(len(s)), **LOAD)
    assert run.url == server.url
    assert run.summary.completed == run.summary.requests == 20
    assert run.summary.attainment == 1
    assert seen == sorted(seen)
    last = run.samples[-1]
    assert (last.sent, last.ended, last.running, last.waiting) == (20, 20, 0, 0)
    tokens = (last.tokens or 0) - (run.samples[0].tokens or 0)
    assert 0 < tokens <= run.summary.output_tokens
    assert f"20 requests at 40/s to {server.url}" in run.finding()
    assert run.row()["failed"] == 0
    assert "labcore-load-test" not in _ours()


def test_a_server_without_metrics_is_watched_by_the_client_alone(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_live, "read_metrics", lambda text: {})
    run = load_url(server.url, 40, seconds=0.2, **LOAD)
    assert run.samples[-1].running is None
    assert run.longest_queue == 0
    assert dict(figures.counters(run.samples, 40))["running"] == "–"
    figures.live_figure(run)


def test_an_interrupt_ends_the_load(server: LiveServer) -> None:
    def stop(samples: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_url(server.url, 5, seconds=20, on_sample=stop, **LOAD)
    assert "labcore-load-test" not in _ours()
    assert load_url(server.url, 40, seconds=0.2, **LOAD).summary.completed == 8, "the server goes on"


def test_nobody_at_an_address_is_told() -> None:
    made = LiveServer(busy_model()).start()
    url = made.url
    made.stop()
    with pytest.raises(LoadTestError, match="No server answers"):
        load_url(url, 5, **LOAD)


def test_watched_work_returns_and_raises_what_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_runner, "TICK_S", 0.01)

    async def fine() -> int:
        await asyncio.sleep(0.05)
        return 7

    async def wrong() -> None:
        raise ValueError("no")

    ticks: list[int] = []
    assert load_runner.finish(fine(), tick=lambda: ticks.append(1)) == 7
    assert ticks
    with pytest.raises(ValueError, match="no"):
        load_runner.finish(wrong(), tick=lambda: None)


def test_metrics_are_read_under_any_prefix() -> None:
    text = (
        "# HELP vllm:num_requests_running Requests.\n"
        'vllm:num_requests_running{engine="0",model_name="a b"} 3.0\n'
        "labcore:num_requests_waiting 2\n"
        'vllm:kv_cache_usage_perc{model_name="m"} 0.25\n'
        'vllm:generation_tokens_total{model_name="m"} 1e3\n'
        "process_open_fds 12\n"
    )
    assert serving_live.read_metrics(text) == {"running": 3, "waiting": 2, "blocks": 0.25, "tokens": 1000}


# Pictures


def _run(rate: float = 10.0, slow: float = 0.1) -> LiveRun:
    records = tuple(
        RequestRecord(str(i), i / rate, i / rate + slow, i / rate + 2 * slow, 4, 3,
                      (i / rate + slow, i / rate + 1.5 * slow, i / rate + 2 * slow))
        for i in range(10)
    )  # fmt: skip
    samples = tuple(Sample(i / 5, 2 * i, i, min(i, 3), max(0, i - 3), i / 10, 100.0 * i) for i in range(6))
    return LiveRun("http://127.0.0.1:1", rate, 1.0, samples, records, Slo(0.2, 0.1))


def test_counters_and_the_strip_show_the_newest_look() -> None:
    run = _run()
    told = dict(figures.counters(run.samples, 10))
    assert (told["running"], told["waiting"], told["blocks in use"], told["sent"]) == ("3", "2", "50 %", "10")
    assert told["tokens/s"] == "500"
    page = figures.dashboard_html(run.samples, 10, 1.0)
    assert page.count("<rect") == 2 * len(run.samples)
    assert "the highest bar is 5" in page
    assert figures.token_rate(run.samples[:1]) is None


def test_the_live_figure_holds_its_loads() -> None:
    calm, crowd = _run(), _run(30.0, 0.4)
    figure = figures.live_figure(crowd, [calm, crowd])
    traces = {trace.name: trace for trace in figure.data}
    assert list(traces["waiting"].y) == [one.waiting for one in crowd.samples]
    assert list(traces["a request"].y) == pytest.approx([400.0] * 10)
    assert list(traces["answered"].x) == [10, 30]
    assert list(traces["goodput"].y) == [one.summary.goodput for one in (calm, crowd)]
    assert traces["goodput"].y[1] == 0
    assert crowd.longest_queue == 2


def test_a_late_client_and_little_are_named() -> None:
    run = _run()
    assert "Little's law" in run.finding()
    late = replace(run, records=tuple(replace(one, sent_s=one.start_s + 0.3) for one in run.records))
    assert "The client itself was up to 300 ms late." in late.finding()
    assert "late" not in run.finding()


# The dashboard


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[display.Bundle]:
    bundles: list[display.Bundle] = []
    monkeypatch.setattr(display.Region, "show", lambda self, bundle: bundles.append(bundle))
    return bundles


def test_each_move_of_the_slider_is_a_load(server: LiveServer, shown: list[display.Bundle]) -> None:
    calm = load_url(server.url, 20.0, seconds=0.2, **LOAD)
    board = widgets.Dashboard(server, [40.0, 80.0], runs=[calm], slo=Slo(5.0), seconds=0.2, **SHORT)
    board.show()
    assert board.runs == {20.0: calm}, "a load that has been is shown, not run again"
    board.rate.source.value = 80.0
    assert sorted(board.runs) == [20.0, 80.0]
    assert board.runs[80.0].summary.completed == 16
    assert any("labcore-dashboard" in bundle.get("text/html", "") for bundle in shown)
    assert "16 requests at 80/s" in shown[-1]["text/plain"]


def test_the_dashboard_works_after_the_server_was_stopped(shown: list[display.Bundle]) -> None:
    made = LiveServer(busy_model())
    board = widgets.dashboard(made, [40.0], slo=Slo(5.0), seconds=0.2, **SHORT)
    assert board.runs[40.0].summary.completed == 8
    assert not made.running
    assert not _listens(board.runs[40.0].url)


def test_what_is_refused_is_shown_as_its_sentence(server: LiveServer, shown: list[display.Bundle]) -> None:
    board = widgets.Dashboard(server, [40.0], slo=Slo(5.0), seconds=0.2, prompt=100, output=100)
    board.load()
    assert board.runs == {}
    assert "The longest request has" in shown[-1]["text/plain"]
