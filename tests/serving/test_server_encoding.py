"""Long prompts: refused before they are encoded, or encoded where nobody else waits for them."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

import labcore
from labcore.model import Model
from labcore.serving import LLMEngine
from labcore.serving.server import Limits, create_app, encoding, serving
from labcore.serving.server.encoding import LONG_TEXT, Encoder
from labcore.serving.server.errors import ApiError
from labcore.serving.server.prompts import Room
from tests.serving.fakes_server import CountingEngine

pytestmark = pytest.mark.timeout(30)
LONG = "x" * (LONG_TEXT + 1)


class Gated:
    """A tokenizer of one token a character, whose long texts wait for `go`."""

    adds_bos = False
    special_ids: frozenset[int] = frozenset()
    byte_level = True

    def __init__(self) -> None:
        self.go = threading.Event()
        self.at_work = threading.Event()
        self.threads: list[str] = []
        self.together = self.most_together = 0

    def fewest_tokens(self, text: str) -> int:
        return len(text)

    def encode(self, text: str, add_bos: bool = False) -> list[int]:
        self.threads.append(threading.current_thread().name)
        if len(text) > LONG_TEXT:
            self.together += 1
            self.most_together = max(self.most_together, self.together)
            self.at_work.set()
            assert self.go.wait(10)
            self.together -= 1
        return [1] * len(text)

    def stream(self, prompt: object = ()) -> Any:
        return SimpleNamespace(push=lambda _: "", flush=lambda: "")


def encoder(tokenizer: Any, *, most_waiting: int = 10**6, **limits: Any) -> Encoder:
    one = Encoder(tokenizer, Room(10_000, Limits(**limits)), most_waiting=most_waiting)
    one.start()
    return one


async def at_work(tokenizer: Gated) -> None:
    while not tokenizer.at_work.is_set():
        await asyncio.sleep(0.001)


# Refused before anything is encoded


@pytest.fixture(scope="module")
def story() -> Model:
    return labcore.load("story", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def client(story: Model) -> Iterator[httpx.Client]:
    app = create_app(LLMEngine(story, num_blocks=128))
    with serving(app) as url, httpx.Client(base_url=url, timeout=10) as asker:
        yield asker


HUGE = "Once upon a time " * 10_000


@pytest.mark.parametrize(
    ("path", "settings", "param"),
    [
        ("completions", {"prompt": HUGE}, "prompt"),
        ("completions", {"prompt": ["a", HUGE]}, "prompt"),
        ("completions", {"prompt": [1] * 200_000}, "prompt"),
        ("chat/completions", {"messages": [{"role": "user", "content": HUGE}]}, "messages"),
        ("chat/completions", {"messages": [{"role": "user", "content": "a" * 300}] * 300}, "messages"),
    ],
)
def test_a_prompt_that_is_certainly_too_long_is_never_encoded(
    client: httpx.Client, story: Model, monkeypatch: pytest.MonkeyPatch,
    path: str, settings: dict[str, Any], param: str,
) -> None:  # fmt: skip
    def encode(*_: object) -> None:
        raise AssertionError("a prompt was encoded")

    monkeypatch.setattr(type(story.tokenizer), "encode", encode)
    answer = client.post(f"/v1/{path}", json={"model": "story", **settings})
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert (error["param"], error["code"]) == (param, "context_length_exceeded"), error
    assert "tokens and may be 1023 here; shorten it." in error["message"]


def test_a_prompt_that_may_fit_is_counted_exactly(client: httpx.Client) -> None:
    answer = client.post("/v1/completions", json={"model": "story", "prompt": "z" * 3_000})
    assert "The prompt is 3001 tokens and may be 1023" in answer.json()["error"]["message"]


# Encoded beside the event loop


def test_long_prompts_are_encoded_one_at_a_time_and_short_ones_do_not_wait() -> None:
    tokenizer = Gated()
    under_test = encoder(tokenizer)

    async def ask() -> list[int]:
        long = [asyncio.create_task(under_test.encode_all([LONG], "prompt")) for _ in range(3)]
        await at_work(tokenizer)
        short = await under_test.encode_all(["ab", [3, 4]], "prompt")
        assert short == [(1, 1), (3, 4)]
        assert not any(task.done() for task in long)
        tokenizer.go.set()
        return [len(ids) for task in long for ids in await task]

    try:
        assert asyncio.run(ask()) == [len(LONG)] * 3
    finally:
        under_test.close()
    assert tokenizer.most_together == 1
    assert len(set(tokenizer.threads)) == 2  # the event loop's, and one for all that is long


def test_too_much_text_that_waits_is_refused_and_what_is_left_makes_place() -> None:
    tokenizer = Gated()
    under_test = encoder(tokenizer, most_waiting=2 * len(LONG), retry_after_s=7)

    async def ask() -> None:
        first = asyncio.create_task(under_test.encode_all([LONG], "prompt"))
        await at_work(tokenizer)
        second = asyncio.create_task(under_test.encode_all([LONG], "prompt"))
        await asyncio.sleep(0)
        with pytest.raises(ApiError, match=r"4,002 characters wait to be encoded, of 4,002") as refused:
            await under_test.encode_all([LONG], "prompt")
        assert (refused.value.status, refused.value.headers["Retry-After"]) == (429, "7")
        second.cancel()  # its client left
        await asyncio.gather(second, return_exceptions=True)
        third = asyncio.create_task(under_test.encode_all([LONG], "prompt"))
        tokenizer.go.set()
        await asyncio.gather(first, third)

    try:
        asyncio.run(ask())
    finally:
        under_test.close()
    assert len(tokenizer.threads) == 2  # the one that left was never encoded


def test_one_prompt_larger_than_all_that_may_wait_is_taken_where_none_waits() -> None:
    tokenizer = Gated()
    tokenizer.go.set()
    under_test = encoder(tokenizer, most_waiting=10)
    try:
        assert len(asyncio.run(under_test.encode_all([LONG], "prompt"))[0]) == len(LONG)
    finally:
        under_test.close()


def test_memory_is_given_back_after_a_very_long_text(monkeypatch: pytest.MonkeyPatch) -> None:
    trims: list[int] = []
    monkeypatch.setattr(encoding, "_give_back_memory", lambda: trims.append(1))
    monkeypatch.setattr(encoding, "TRIM_TEXT", LONG_TEXT)
    tokenizer = Gated()
    tokenizer.go.set()
    under_test = encoder(tokenizer)
    try:
        asyncio.run(under_test.encode_all(["short"], "prompt"))
        assert trims == []
        asyncio.run(under_test.encode_all([LONG, "short"], "prompt"))
        assert trims == [1]
    finally:
        under_test.close()


def test_memory_can_be_given_back_on_this_machine() -> None:
    encoding._give_back_memory()


# Counted by the gate


def test_a_prompt_that_is_being_encoded_holds_its_place() -> None:
    tokenizer = Gated()
    engine = CountingEngine()
    engine.model.tokenizer = tokenizer
    app = create_app(engine, limits=Limits(max_concurrency=1))  # type: ignore[arg-type]
    body = {"model": "counting", "prompt": LONG, "max_tokens": 2}
    codes: list[int] = []
    with serving(app) as url:
        asked = threading.Thread(
            target=lambda: codes.append(httpx.post(f"{url}/v1/completions", json=body).status_code)
        )
        asked.start()
        assert tokenizer.at_work.wait(5)
        full = httpx.post(f"{url}/v1/completions", json=body | {"prompt": "short"})
        assert httpx.get(f"{url}/health").status_code == 200  # the event loop is free
        tokenizer.go.set()
        asked.join()
        after = httpx.post(f"{url}/v1/completions", json=body | {"prompt": "short"})
    assert (full.status_code, after.status_code, codes) == (429, 200, [200])
    assert "Retry-After" in full.headers
    assert app.state.service.gate.taken == 0


# A tokenizer that fails


def test_what_is_no_exception_fails_one_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = CountingEngine()
    engine.model.tokenizer = Gated()
    app = create_app(engine)  # type: ignore[arg-type]
    failures = itertools.product([SystemExit, type("PanicException", (BaseException,), {})], ["a", LONG])
    with serving(app) as url:
        for failure, prompt in failures:

            def encode(*_: object, failure: type[BaseException] = failure) -> None:
                raise failure("a regex went too far")

            monkeypatch.setattr(engine.model.tokenizer, "encode", encode)
            for stream in (False, True):
                body = {"model": "counting", "prompt": prompt, "max_tokens": 2, "stream": stream}
                answer = httpx.post(f"{url}/v1/completions", json=body)
                assert answer.status_code == 500
                assert failure.__name__ in answer.json()["error"]["message"]
        ids = httpx.post(f"{url}/v1/completions", json={"model": "counting", "prompt": [1], "max_tokens": 2})
        assert ids.status_code == 200
    assert app.state.service.gate.taken == 0


def test_a_template_that_ends_python_ends_one_request() -> None:
    def template(_: object) -> str:
        raise SystemExit

    app = create_app(CountingEngine(), chat_template=template)  # type: ignore[arg-type]
    with serving(app) as url:
        chat = {"model": "counting", "messages": [{"role": "user", "content": "a"}]}
        answer = httpx.post(f"{url}/v1/chat/completions", json=chat)
        assert answer.status_code == 500
        assert "SystemExit" in answer.json()["error"]["message"]
        assert httpx.get(f"{url}/health").status_code == 200
