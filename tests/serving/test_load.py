"""The load generator against a server on a real socket: what is sent and counted, never how long it took."""

from __future__ import annotations

import _thread
import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest

from labcore.serving.load import Client, LoadRun, LoadTestError, run_load
from labcore.serving.load.client import Dialect, base_url
from labcore.serving.load.runner import finish
from labcore.serving.metrics import RequestRecord, summarize
from labcore.serving.workload import Workload, make_workload
from tests.serving.fakes_http import FakeServer

LIMIT_S = 30.0  # of a test that would hang


def workload(n: int = 6, **settings: Any) -> Workload:
    return make_workload(n, prompt="uniform:5-9", output="uniform:3-8", vocab_size=50, **settings)


def load(
    server: FakeServer, made: Workload, client: dict[str, Any] | None = None, **settings: Any
) -> LoadRun:
    return run_load(Client(server.url, timeout_s=LIMIT_S, **(client or {})), made, **settings)


def every(step: int, behaviour: str) -> Callable[[int], str]:
    """Every so many requests something else than an answer."""
    return lambda number: behaviour if number % step == step - 1 else "ok"


@pytest.mark.parametrize("users", [None, 2])
def test_every_request_is_sent_as_planned_and_every_token_counted(users: int | None) -> None:
    made = workload(rate=200)
    with FakeServer() as server:
        run = load(server, made, users=users)
    assert (run.model, run.loop) == ("fake", "closed" if users else "open")
    sent = sorted((body["prompt"], body["max_tokens"]) for body in server.bodies)
    assert sent == sorted((list(a.prompt), a.output_tokens) for a in made)
    for body in server.bodies:
        assert body["ignore_eos"]
        assert body["stream"]
        assert (body["model"], body["temperature"]) == ("fake", 0.0)
    found = {record.id: record for record in run.records}
    for arrival in made:
        record = found[arrival.id]
        assert record.ok
        assert record.prompt_tokens == arrival.prompt_tokens
        assert record.output_tokens == len(record.token_times) == arrival.output_tokens
        assert record.sent_s is not None
        assert record.start_s <= record.sent_s <= record.first_token_s <= record.end_s  # type: ignore[operator]
        assert list(record.token_times) == sorted(record.token_times)


def test_an_open_loop_waits_for_nobody() -> None:
    """No answer comes before all requests are there: a loop that waited for answers would never end."""
    made = workload(8, rate=400)
    with FakeServer(together=8) as server:
        run = load(server, made)
    assert [record.start_s for record in run.records] == [arrival.at_s for arrival in made]
    assert all(record.ok for record in run.records)
    assert (server.peak, summarize(run.records).concurrency_peak) == (8, 8)


def test_latency_counts_from_when_a_request_was_due() -> None:
    """One connection: the second request cannot leave before the first has its answer."""
    with FakeServer() as server:
        run = load(server, workload(5), {"connections": 1})
    assert server.peak == 1
    assert [record.start_s for record in run.records] == [0.0] * 5
    in_order = sorted(run.records, key=lambda record: record.end_s)
    for earlier, later in zip(in_order, in_order[1:], strict=False):
        assert later.sent_s is not None
        assert later.sent_s >= earlier.end_s
        assert later.ttft_s is not None
        assert later.ttft_s > earlier.e2e_s
    assert summarize(run.records).late_s == in_order[-1].sent_s


def test_a_closed_loop_has_as_many_in_flight_as_users() -> None:
    with FakeServer(together=3) as server:
        run = load(server, workload(9), users=3)
    assert (server.peak, len(server.bodies)) == (3, 9)
    assert all(record.ok for record in run.records)
    with pytest.raises(ValueError, match="0 users"):
        load(server, workload(2), users=0)


@pytest.mark.parametrize(
    ("behaviour", "kind", "detail"),
    [
        ("500", "http 500", "out of cheese"),
        ("429", "http 429", "too many requests"),
        ("disconnect", "disconnected", ""),
        ("garbage", "bad stream", "{not json"),
        ("error", "error in the stream", "engine died"),
        ("empty", "no tokens", "no tokens"),
    ],
)
@pytest.mark.parametrize("users", [None, 2])
def test_failures_are_counted_by_kind_and_the_rest_goes_on(
    behaviour: str, kind: str, detail: str, users: int | None
) -> None:
    with FakeServer(every(3, behaviour)) as server:
        run = load(server, workload(9), users=users)
    assert len(server.bodies) == 9
    summary = summarize(run.records)
    assert (summary.completed, summary.errors) == (6, {kind: 3})
    failed = [record for record in run.records if not record.ok]
    assert all(detail in record.detail for record in failed)
    started = behaviour in ("disconnect", "garbage", "error")
    assert all(
        (record.output_tokens, len(record.token_times)) == ((2, 2) if started else (0, 0))
        for record in failed
    )


def test_a_hanging_answer_times_out() -> None:
    with FakeServer(every(4, "hang")) as server:
        run = run_load(Client(server.url, timeout_s=1.0), workload(4))
    assert summarize(run.records).errors == {"timeout": 1}
    (late,) = (record for record in run.records if not record.ok)
    assert (late.output_tokens, late.detail) == (2, "no whole answer within 1 s")


def test_a_429_is_tried_again_only_when_asked() -> None:
    with FakeServer(lambda number: "429" if number < 4 else "ok") as server:
        run = load(server, workload(4), {"retry": True}, users=1)
    assert len(server.bodies) == 8
    assert [record.error for record in run.records] == [None] * 4


def test_a_server_that_leaves_in_the_middle_costs_only_errors() -> None:
    server = FakeServer()

    def leave(record: RequestRecord) -> None:
        server._server.should_exit = True
        server._thread.join(LIMIT_S)

    with server:
        run = load(server, workload(5), users=1, on_record=leave)
    assert [record.error for record in run.records] == [None] + ["no connection"] * 4


def test_warm_up_is_sent_first_and_not_recorded() -> None:
    made, warm = workload(3), workload(2, seed=9)
    told: list[RequestRecord] = []
    with FakeServer() as server:
        run = load(server, made, users=1, warmup=warm, on_record=told.append)
    assert [body["prompt"] for body in server.bodies] == [list(a.prompt) for a in (*warm, *made)]
    assert told == list(run.records)
    assert [record.id for record in run.records] == ["r0", "r1", "r2"]


def test_a_server_that_takes_no_ids_is_sent_words() -> None:
    made = workload(3)
    with FakeServer(refuses=("ids", "stream_options", "return_token_ids")) as server:
        run = load(server, made)
    assert run.dialect == Dialect(ids=False, usage=False, listed=False)
    counts = sorted(len(body["prompt"].split()) for body in server.bodies)
    assert counts == sorted(arrival.prompt_tokens for arrival in made)
    assert all({"stream_options", "return_token_ids"}.isdisjoint(body) for body in server.bodies)
    assert [record.output_tokens for record in run.records] == [a.output_tokens for a in made]


def test_a_server_that_refuses_ignore_eos_is_told_of_in_a_sentence() -> None:
    with FakeServer(refuses=("ignore_eos",)) as server:
        with pytest.raises(LoadTestError, match="--no-ignore-eos"):
            load(server, workload(2))
        run = load(server, workload(2), {"ignore_eos": False})
    assert all("ignore_eos" not in body for body in server.bodies)
    assert all(record.ok for record in run.records)


def test_a_server_that_refuses_everything_says_why() -> None:
    with (
        FakeServer(refuses=("model",)) as server,
        pytest.raises(LoadTestError, match="unknown argument model"),
    ):
        load(server, workload(2))
    assert server.bodies == []


def test_what_cannot_be_tested_is_one_sentence() -> None:
    with FakeServer(models=()) as server, pytest.raises(LoadTestError, match="serves no model"):
        load(server, workload(2))
    with FakeServer(models=("a", "b")) as server, pytest.raises(LoadTestError, match="serves a, b, not c"):
        load(server, workload(2), {"model": "c"})
    with FakeServer(max_model_len=10) as server, pytest.raises(LoadTestError, match="takes 10"):
        load(server, workload(20))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(LoadTestError, match=f"No server answers at http://127.0.0.1:{port}/v1/"):
        run_load(Client(f"127.0.0.1:{port}"), workload(2))
    with pytest.raises(LoadTestError, match="no address"):
        run_load(Client("http://127.0.0.1:port"), workload(2))


def test_a_key_opens_what_no_key_and_a_wrong_one_do_not() -> None:
    with FakeServer(key="secret") as server:
        with pytest.raises(LoadTestError, match="without a key"):
            load(server, workload(2))
        with pytest.raises(LoadTestError, match="the given key") as refused:
            load(server, workload(2), {"api_key": "guess"})
        assert "guess" not in str(refused.value)
        run = load(server, workload(2), {"api_key": "secret", "model": "fake"})
    assert all(record.ok for record in run.records)


def test_a_client_can_run_twice() -> None:
    with FakeServer() as server:
        client = Client(server.url, connections=2)
        runs = [run_load(client, workload(6)) for _ in range(2)]
    assert [len([r for r in run.records if r.ok]) for run in runs] == [6, 6]


def test_the_same_address_in_its_usual_spellings() -> None:
    for url in ("h:1", "http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"):
        assert base_url(url) == "http://h:1/v1/"
    assert base_url("https://h/api/v1") == "https://h/api/v1/"


def test_it_runs_where_a_loop_runs_already() -> None:
    async def notebook() -> LoadRun:
        with FakeServer() as server:
            return load(server, workload(3))

    assert all(record.ok for record in asyncio.run(notebook()).records)


def test_an_error_comes_through_from_beside_a_running_loop() -> None:
    async def wrong() -> None:
        raise LoadTestError("no")

    async def notebook() -> None:
        finish(wrong())

    with pytest.raises(LoadTestError, match="no"):
        asyncio.run(notebook())


def test_an_interrupt_ends_the_load_before_it_is_raised() -> None:
    ended: list[bool] = []

    async def endless() -> None:
        try:
            _thread.interrupt_main()
            await asyncio.sleep(3600)
        finally:
            ended.append(True)

    async def notebook() -> None:
        finish(endless())

    loop = asyncio.new_event_loop()  # like a notebook's: asyncio.run would catch the interrupt itself
    try:
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(notebook())
    finally:
        loop.close()
    assert ended == [True]
