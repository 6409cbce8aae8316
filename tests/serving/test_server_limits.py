"""What a server does not let pass, and what becomes of requests whose client, time or server is gone."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from labcore.errors import ConfigError
from labcore.serving.server import Limits, ServerError, bind, create_app, serving
from tests.serving.fakes_server import CountingEngine

pytestmark = pytest.mark.timeout(30)
FOREVER = 10_000


@contextmanager
def served(engine: CountingEngine, **settings: Any) -> Iterator[httpx.Client]:
    """A client of a server, of which no thread may be left."""
    before = set(threading.enumerate())
    app = create_app(engine, **settings)  # type: ignore[arg-type]
    with serving(app) as url, httpx.Client(base_url=url, timeout=10) as client:
        yield client
    assert set(threading.enumerate()) == before
    assert app.state.service.gate.taken == 0


def body(**settings: Any) -> dict[str, Any]:
    return {"model": "counting", "prompt": [1, 2, 3], "max_tokens": 4, "return_token_ids": True, **settings}


def until(holds: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.002)


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """Every error has the same four fields, and its message is a sentence."""
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"].endswith(".")
    return error


def events(lines: Iterator[str]) -> list[Any]:
    """The events of a stream that ended as it should."""
    told = [line.removeprefix("data: ") for line in lines if line]
    assert told.pop() == "[DONE]"
    return [json.loads(event) for event in told]


# Bodies


def test_a_long_body_is_refused_with_its_size() -> None:
    with served(CountingEngine(), limits=Limits(max_body_bytes=500)) as client:
        announced = client.post("/v1/completions", json=body(user="x" * 600))
        assert announced.status_code == 413
        assert "may be 500" in error_of(announced)["message"]
        unannounced = client.post("/v1/completions", content=iter([b"x" * 300] * 3))
        assert unannounced.status_code == 413
        with socket.create_connection((client.base_url.host, client.base_url.port), timeout=5) as huge:
            huge.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 999999999\r\n\r\n")
            assert huge.recv(100).startswith(b"HTTP/1.1 413")
        assert client.post("/v1/completions", json=body()).status_code == 200


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    with served(CountingEngine(), limits=Limits(body_timeout_s=0.1)) as client:
        address = (client.base_url.host, client.base_url.port)
        with socket.create_connection(address, timeout=5) as slow:
            slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
            assert slow.recv(100).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"model"', "not JSON"),
        (b"[]", "JSON object"),
        (b"", "JSON object"),
        (b'{"model": "counting", "prompt": ' + b"[" * 50_000, "JSON"),
        (b'{"model": "\\ud800", "prompt": [1]}', "no model"),
        (b'{"model": "counting", "prompt": [1], "\\ud800": 1}', "."),
        (b'{"model": "counting", "prompt": [1], "temperature": 1e999}', "temperature"),
        (b'{"model": "counting"}', "prompt is missing"),
        (b'{"model": "counting", "prompt": []}', "at least one prompt"),
        (b'{"model": "counting", "prompt": ["", ""]}', "at least one character"),
        (b'{"model": "counting", "prompt": "text"}', "no tokenizer"),
    ],
)
def test_what_cannot_be_meant_is_said_in_one_sentence(
    shared: httpx.Client, content: bytes, says: str
) -> None:
    answer = shared.post("/v1/completions", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 404)
    assert says in error_of(answer)["message"]


@pytest.fixture(scope="module")
def shared() -> Iterator[httpx.Client]:
    with served(CountingEngine()) as client:
        yield client


def test_defaults_and_nulls_of_other_clients_are_taken(shared: httpx.Client) -> None:
    null = dict.fromkeys(("tools", "logit_bias", "stop", "seed", "n", "response_format", "unheard_of"))
    usual = {"presence_penalty": 0, "frequency_penalty": 0.0, "best_of": 1, "echo": False, "user": "me"}
    answer = shared.post("/v1/completions", json=body(**null, **usual, stream=False))
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["token_ids"] == [1, 2, 3, 4]


def test_unknown_places_and_methods_are_answered_alike(shared: httpx.Client) -> None:
    assert "/v1/models" in error_of(shared.get("/nowhere"))["message"]
    assert shared.get("/v1/completions").status_code == 405
    assert error_of(shared.get("/v1/models/other"))["code"] == "model_not_found"


def test_lengths_are_refused_with_their_numbers() -> None:
    limits = Limits(max_prompt_tokens=10, max_tokens=20)
    with served(CountingEngine(), limits=limits) as client:
        prompt = client.post("/v1/completions", json=body(prompt=[1] * 11))
        assert prompt.status_code == 400
        assert "11 tokens and may be 10" in error_of(prompt)["message"]
        assert error_of(prompt)["code"] == "context_length_exceeded"
        answer = client.post("/v1/completions", json=body(max_tokens=21))
        assert "max_tokens 21; 20 may follow" in error_of(answer)["message"]
        usual = client.post("/v1/completions", json=body(max_tokens=None)).json()
        assert usual["usage"]["completion_tokens"] == 16


def test_a_prompt_beyond_the_attention_window_is_told_of_it() -> None:
    engine = CountingEngine(max_model_len=64)
    engine.model.config.sliding_window = 64
    with served(engine) as client:
        message = error_of(client.post("/v1/completions", json=body(prompt=[1] * 64)))["message"]
    assert "64 tokens and may be 63 here, as the model's attention window is 64" in message
    with served(engine, limits=Limits(max_prompt_tokens=10)) as client:  # then the window is not why
        message = error_of(client.post("/v1/completions", json=body(prompt=[1] * 64)))["message"]
    assert "64 tokens and may be 10 here; shorten it." in message


@pytest.mark.parametrize("setting", ["max_body_bytes", "max_concurrency", "max_tokens", "grace_s"])
def test_limits_that_mean_nothing_are_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match=f"{setting} is -1"):
        Limits(**{setting: -1})


# Keys


def test_a_key_is_asked_for_before_the_body_is_read() -> None:
    with served(CountingEngine(), api_key="secret", limits=Limits(max_body_bytes=10)) as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            answer = client.post("/v1/completions", json=body(), headers=headers)
            assert answer.status_code == 401
            assert error_of(answer)["code"] == "invalid_api_key"
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        right = {"Authorization": "bEARER secret"}  # the scheme may be spelt in any case, the key may not
        assert client.get("/v1/models", headers={"Authorization": "Bearer Secret"}).status_code == 401
        assert client.head("/v1/models").status_code == 401
        assert client.post("/v1/completions", json=body(), headers=right).status_code == 413
        assert client.get("/v1/models", headers=right).status_code == 200
        assert client.get("/health").status_code == client.get("/metrics").status_code == 200


def test_a_key_that_no_header_can_carry_is_refused() -> None:
    with pytest.raises(ConfigError, match="1 characters"):
        create_app(CountingEngine(), api_key="é")  # type: ignore[arg-type]


# Places


def test_every_choice_takes_a_place_and_gives_it_back() -> None:
    with served(CountingEngine(step_s=0.002), limits=Limits(max_concurrency=4)) as client:
        assert error_of(client.post("/v1/completions", json=body(n=5)))["param"] == "n"
        running = body(n=3, max_tokens=FOREVER, stream=True)
        with client.stream("POST", "/v1/completions", json=running) as answer:
            parts = answer.iter_raw()
            next(parts)  # kept: with the iterator the answer would be closed
            full = client.post("/v1/completions", json=body(n=2))
            assert full.status_code == 429
            assert int(full.headers["Retry-After"]) >= 1
            assert "3 of 4" in error_of(full)["message"]
            assert client.post("/v1/completions", json=body()).status_code == 200
        until(lambda: client.post("/v1/completions", json=body(n=4)).status_code == 200)


# Time


def test_an_answer_that_takes_too_long_is_ended_and_its_blocks_freed() -> None:
    engine = CountingEngine(step_s=0.002)
    with served(engine, limits=Limits(request_timeout_s=0.1)) as client:
        late = client.post("/v1/completions", json=body(max_tokens=FOREVER))
        assert late.status_code == 504
        assert "After 0.1 s" in error_of(late)["message"]
        until(lambda: not engine.requests)
        streamed = body(max_tokens=FOREVER, stream=True)
        with client.stream("POST", "/v1/completions", json=streamed) as answer:
            told = events(answer.iter_lines())
        assert answer.status_code == 200
        assert told[-1]["error"]["code"] == "timeout"
        assert told[0]["choices"][0]["token_ids"] == [1]
        until(lambda: not engine.requests)


# Clients that leave


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_blocks_within_a_step(stream: bool) -> None:
    engine = CountingEngine(step_s=0.02)
    with served(engine) as client:
        address = (client.base_url.host, client.base_url.port)
        sent = json.dumps(body(max_tokens=FOREVER, stream=stream)).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with socket.create_connection(address, timeout=5) as leaving:
            leaving.sendall(head.encode() + f"Content-Length: {len(sent)}\r\n\r\n".encode() + sent)
            until(lambda: engine.steps >= 3)
        left_at = engine.steps
        until(lambda: not engine.requests)
        assert engine.steps <= left_at + 2  # the one it was in, and the one before the news arrived
        assert len(engine.aborted) == 1


# Servers that stop


def test_stopping_waits_for_what_runs_and_refuses_what_comes() -> None:
    engine, found = CountingEngine(step_s=0.01), []
    app = create_app(engine, limits=Limits(grace_s=10))  # type: ignore[arg-type]
    with serving(app) as url:
        asked = threading.Thread(
            target=lambda: found.append(httpx.post(f"{url}/v1/completions", json=body(max_tokens=60)))
        )
        asked.start()
        until(lambda: engine.steps > 2)
        stopping = threading.Thread(target=lambda: asyncio.run(app.state.service.engine.drain(10)))
        stopping.start()
        until(lambda: not app.state.service.engine.accepting)
        refused = httpx.post(f"{url}/v1/completions", json=body())
        health = httpx.get(f"{url}/health")
        stopping.join()
    asked.join()
    assert refused.status_code == health.status_code == 503
    assert "shut down" in error_of(refused)["message"]
    assert int(refused.headers["Retry-After"]) >= 1 <= int(health.headers["Retry-After"])
    assert found[0].status_code == 200
    assert found[0].json()["usage"]["completion_tokens"] == 60


def test_what_takes_longer_than_the_grace_time_is_told_so() -> None:
    engine, whole, streamed = CountingEngine(step_s=0.005), [], []
    app = create_app(engine, limits=Limits(grace_s=0.1))  # type: ignore[arg-type]

    def stream() -> None:
        with httpx.stream("POST", f"{url}/v1/completions", json=long | {"stream": True}) as answer:
            streamed.extend(events(answer.iter_lines()))

    long = body(max_tokens=FOREVER)
    with serving(app) as url:
        threads = [
            threading.Thread(target=lambda: whole.append(httpx.post(f"{url}/v1/completions", json=long))),
            threading.Thread(target=stream),
        ]
        for thread in threads:
            thread.start()
        until(lambda: len(engine.requests) == 2 and engine.steps > 5)
    for thread in threads:
        thread.join()
    assert whole[0].status_code == 503
    assert error_of(whole[0])["code"] == "aborted"
    assert "Retry-After" in whole[0].headers
    assert streamed[-1]["error"]["code"] == "aborted"
    assert engine.requests == {}


def test_an_engine_that_dies_while_it_answers_is_told_to_each_client() -> None:
    engine, codes = CountingEngine(step_s=0.005, fails_at=20), []
    with served(engine) as client:

        def whole() -> None:
            codes.append(client.post("/v1/completions", json=body(max_tokens=FOREVER)).status_code)

        asked = threading.Thread(target=whole)
        asked.start()
        streamed = body(max_tokens=FOREVER, stream=True)
        with client.stream("POST", "/v1/completions", json=streamed) as answer:
            told = events(answer.iter_lines())
        asked.join()
        assert "a cable came off" in told[-1]["error"]["message"]
        assert codes == [503]
        after = client.post("/v1/completions", json=body())
        assert after.status_code == client.get("/health").status_code == 503
        assert "a cable came off" in error_of(after)["message"]
        assert client.get("/metrics").status_code == 200


# Ports


def test_a_port_that_is_taken_is_refused_with_one_that_is_free() -> None:
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(ServerError, match=f"Port {port} of 127.0.0.1 is taken; give --port") as refused:
            bind("127.0.0.1", port)
        free = int(str(refused.value).split("--port ")[1].split(",")[0])
        bind("127.0.0.1", free).close()


@pytest.mark.parametrize(("host", "port"), [("no.such.host.invalid", 8000), ("127.0.0.1", 70_000)])
def test_addresses_that_do_not_exist_are_refused(host: str, port: int) -> None:
    with pytest.raises(ServerError, match="give --"):
        bind(host, port)


def test_an_app_can_be_served_again() -> None:
    app = create_app(CountingEngine())  # type: ignore[arg-type]
    for _ in range(2):
        with serving(app) as url:
            assert httpx.post(f"{url}/v1/completions", json=body()).status_code == 200
