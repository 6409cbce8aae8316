"""What a body may hold: each mistake is named by its path, and none costs more than reading it."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

import labcore
from labcore.serving import LLMEngine
from labcore.serving.server import create_app, serving
from labcore.serving.server.api_types import ChatBody, CompletionBody
from labcore.serving.server.errors import ApiError
from labcore.serving.server.invalid import as_error
from labcore.serving.server.turns import LONG_BODY, Turns
from tests.serving.fakes_server import CountingEngine

pytestmark = pytest.mark.timeout(30)
NAN, SURROGATE = float("nan"), "\ud800"


def completion(**settings: Any) -> CompletionBody:
    return CompletionBody.model_validate({"model": "m", "prompt": "a", **settings})


def chat(**settings: Any) -> ChatBody:
    return ChatBody.model_validate({"model": "m", "messages": [{"role": "user", "content": "a"}], **settings})


def says(*content: Any, **more: Any) -> dict[str, Any]:
    """A conversation whose second message has these parts."""
    message = {"role": "user", "content": list(content), **more}
    return {"messages": [{"role": "system", "content": "a"}, message]}


def refused(make: Any, **settings: Any) -> ApiError:
    with pytest.raises(ValidationError) as caught:
        make(**settings)
    problems = [{**one, "loc": ("body", *one["loc"])} for one in caught.value.errors()]
    assert len(problems) == 1  # of a body of a megabyte too: to list them all would take seconds
    return as_error(problems)


TEXT = {"type": "text", "text": "a"}


@pytest.mark.parametrize(
    ("make", "settings", "param", "message"),
    [
        (chat, says(TEXT, tool_calls=[]), "messages[1].tool_calls", "is no setting of this server"),
        (chat, says({**TEXT, "x": 1}), "messages[1].content[0].x", "is no setting"),
        (
            chat,
            says(TEXT, {"type": "image_url", "image_url": {}}),
            "messages[1].content[1]",
            "is an image and",
        ),
        (
            chat,
            says({"type": "input_audio"}),
            "messages[1].content[0]",
            "is a sound and this server reads text",
        ),
        (chat, says({"type": ["x"]}), "messages[1].content[0]", "is no text and this server reads text"),
        (chat, says({"type": "text", "text": 1}), "messages[1].content[0].text", "is no text"),
        (chat, says("a"), "messages[1].content[0]", "is no part of a message"),
        (chat, {"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role", "is 'tool'"),
        (chat, {"messages": [{"content": "a"}]}, "messages[0].role", "is missing"),
        (chat, {"messages": []}, "messages", "is empty"),
        (chat, {"response_format": {"type": "json_object"}}, "response_format.type", "'json_object'"),
        (chat, {"top_logprobs": 2, "logprobs": False}, "top_logprobs", "is 2 without logprobs"),
        (completion, {"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "is no setting"),
        (completion, {"stream_options": {"include_usage": True}}, "stream_options", "stream is not true"),
        (completion, {"temperature": 2.1}, "temperature", "is 2.1: input should be less than or equal to 2"),
        (completion, {"temperature": NAN}, "temperature", "is nan"),
        (completion, {"temperature": 10**400}, "temperature", "is 1000"),
        (completion, {"temperature": "0.5"}, "temperature", "is '0.5': input should be a valid number"),
        (completion, {"temperature": True}, "temperature", "is true"),
        (completion, {"max_tokens": "16"}, "max_tokens", "is '16': input should be a valid integer"),
        (completion, {"max_tokens": True}, "max_tokens", "is true: input should be a valid integer"),
        (completion, {"max_tokens": 1.5}, "max_tokens", "is 1.5"),
        (completion, {"logprobs": True}, "logprobs", "is true"),
        (completion, {"stream": 1}, "stream", "is 1: input should be a valid boolean"),
        (completion, {"stream": "true"}, "stream", "is 'true'"),
        (completion, {"n": 129}, "n", "is 129"),
        (completion, {"model": None}, "model", "is null"),
        (completion, {"stop": ["a", ""]}, "stop[1]", "is empty"),
        (completion, {"stop": ["a"] * 17}, "stop", "has 17 items; give at most 16"),
        (completion, {"stop": ["a", "b" * 257]}, "stop[1]", "at most 256 characters"),
        (completion, {"stop": SURROGATE}, "stop", "is '\\ud800'"),
        (completion, {"prompt": [1, "a"]}, "prompt[1]", "is 'a'; give a text"),
        (completion, {"prompt": ["a", [1]]}, "prompt[1]", "is [1]; give a text"),
        (completion, {"prompt": [[1], [2, True]]}, "prompt[1][1]", "is true; give a text"),
        (completion, {"prompt": {}}, "prompt", "is {}; give a text"),
        (completion, {"best_of": 2}, "best_of", "is 2 and n 1"),
        (completion, {"echo": True}, "echo", "is true"),
        (completion, {"suffix": "b"}, "suffix", "has 1 characters"),
        (completion, {"logit_bias": {"1": 2}}, "logit_bias", "names 1 tokens"),
        (completion, {"presence_penalty": 0.5}, "presence_penalty", "is 0.5"),
        (completion, {"frequency_penalty": -1}, "frequency_penalty", "is -1"),
        (completion, {"n": 0}, "n", "is 0"),
        (completion, {"stop": [1]}, "stop[0]", "is 1; give a text or a list"),
        (completion, {"tools": []}, "tools", "is no setting of this server"),
        (completion, {SURROGATE: 1}, "\\ud800", "is no setting"),
    ],
)
def test_a_mistake_is_named_by_its_path(
    make: Any, settings: dict[str, Any], param: str, message: str
) -> None:
    error = refused(make, **settings)
    assert error.detail.param == param
    assert error.detail.message.startswith(f"{param} ")
    assert message in error.detail.message
    assert error.detail.message.endswith(".")


MANY = 100_000


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (chat, says(*[{}] * MANY)),
        (chat, says(*[1] * MANY)),
        (chat, {"messages": [{}] * MANY}),
        (chat, {"messages": [{"role": "user", "content": ""}] * 5_000}),
        (completion, {"prompt": [{}] * MANY}),
        (completion, {"prompt": [*[1] * MANY, "a"]}),
        (completion, {"prompt": ["a"] * MANY}),
        (completion, {"prompt": [[1]] * MANY}),
        (completion, {"stop": [1] * MANY}),
        (completion, {"logit_bias": dict.fromkeys(map(str, range(MANY)), "x")}),
        (completion, {f"k{i}": i for i in range(MANY)}),
        (completion, {"k" * MANY: 1}),
        (completion, {"seed": json.loads("[" * 800 + "]" * 800)}),
        (completion, {"temperature": "9" * MANY}),
    ],
)
def test_many_mistakes_are_one(make: Any, settings: dict[str, Any]) -> None:
    assert len(refused(make, **settings).detail.message) < 250


def test_what_clients_send_by_habit_is_taken() -> None:
    nulls = dict.fromkeys(
        ("stop", "seed", "n", "temperature", "top_p", "max_tokens", "max_completion_tokens", "logprobs",
         "top_logprobs", "logit_bias", "user", "stream", "stream_options", "response_format", "tools",
         "tool_choice", "parallel_tool_calls", "functions", "presence_penalty", "frequency_penalty")
    )  # fmt: skip
    assert chat(**nulls).choices == 1
    for stop in ("", [], None):
        assert completion(stop=stop).stopping(4).strings == ()
    assert completion(max_tokens=16.0, n=2.0, seed=-1.0).max_tokens == 16
    assert completion(n=2, temperature=0).samplings()[1].greedy
    assert chat(top_logprobs=0, logprobs=False).wanted_logprobs is None
    assert chat(top_logprobs=0).wanted_logprobs is None
    own = {"role": "assistant", "content": "a", "refusal": None, "tool_calls": None, "audio": None}
    assert chat(messages=[own]).messages[0].text == "a"
    assert chat(messages=[{"role": "user", "content": None}]).messages[0].text == ""
    parts = [TEXT, {"type": "text", "text": "b", "cache_control": None}]
    assert chat(**says(*parts)).messages[1].text == "ab"


# Over HTTP


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    story = labcore.load("story", device="cpu", dtype="float32")
    with (
        serving(create_app(LLMEngine(story, num_blocks=64))) as url,
        httpx.Client(base_url=url, timeout=10) as asker,
    ):
        yield asker


JSON = {"Content-Type": "application/json"}
DEEP = b"[" * 900 + b"]" * 900


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"model": "story", "prompt": "\\ud83d and \\udc00", "max_tokens": 1}', 200),
        (b'{"model": "story", "prompt": "\\u0000", "max_tokens": 1}', 200),
        (b'{"model": "story", "prompt": "a", "max_tokens": 9, "max_tokens": 1}', 200),
        (b'{"model": "story", "prompt": "a", "max_tokens": 1, "user": NaN}', 200),
        (b'{"model": "story", "prompt": "a", "max_tokens": 1, "user": ' + DEEP + b"}", 200),
        (b'\xef\xbb\xbf{"model": "story", "prompt": "a", "max_tokens": 1}', 200),
        (b'{"model": "story", "prompt": "a", "max_tokens": 1, "priority": 1' + b"0" * 300 + b"}", 200),
        (b'{"model": "story", "prompt": "a", "max_tokens": 1, "seed": -1' + b"0" * 300 + b"}", 200),
        (b'{"model": "story", "prompt": "a", "top_k": 1' + b"0" * 30 + b', "max_tokens": 1}', 200),
        (b'{"model": "story", "prompt": "a", "repetition_penalty": 1e-300, "max_tokens": 1}', 400),
        (b'{"model": "story", "prompt": "a", "repetition_penalty": 1e300, "max_tokens": 1}', 400),
        (b'{"model": "story", "prompt": "a", "max_tokens": ' + b"9" * 5000 + b"}", 400),
        (b'{"model": "story", "prompt": ' + DEEP + b"}", 400),
        (b'{"model": "story", "prompt": "\xff"}', 400),
        (b'{"model": "story", "prompt": [' + b"9" * 30 + b"]}", 400),
        (b'{"model": "story", "prompt": [-1]}', 400),
        (b"null", 400),
    ],
)
def test_odd_json_is_answered_and_the_engine_goes_on(client: httpx.Client, body: bytes, status: int) -> None:
    answer = client.post("/v1/completions", content=body, headers=JSON)
    assert answer.status_code == status
    assert ("error" in answer.json()) == (status != 200)
    assert client.get("/health").status_code == 200


def test_what_the_engine_refuses_names_the_prompt(client: httpx.Client) -> None:
    error = client.post("/v1/completions", json={"model": "story", "prompt": [5000]}).json()["error"]
    assert error["param"] == "prompt"
    assert "token 5000" in error["message"]
    asked = {"model": "story", "messages": [{"role": "user", "content": "a"}], "max_completion_tokens": 2000}
    error = client.post("/v1/chat/completions", json=asked).json()["error"]
    assert error["param"] == "max_completion_tokens"
    assert "max_completion_tokens 2000" in error["message"]


@pytest.mark.parametrize("path", ["/health", "/metrics", "/v1/models", "/v1/models/story"])
def test_what_can_be_fetched_can_be_asked_for_its_head(client: httpx.Client, path: str) -> None:
    head, body = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == body.headers["content-type"]


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_of_another_type_is_told_which(client: httpx.Client, kind: str | None) -> None:
    headers = {"Content-Type": kind} if kind else {}
    answer = client.post("/v1/completions", content=b'{"model": "story"}', headers=headers)
    assert answer.status_code == 415
    assert "Content-Type: application/json" in answer.json()["error"]["message"]


# Turns


def test_long_bodies_take_turns_and_no_garbage_is_collected_meanwhile() -> None:
    turns, order = Turns(), []

    async def read(name: str) -> None:
        async with turns.take():
            order.append(f"{name} begins")
            assert not gc.isenabled()
            await asyncio.sleep(0.001)
            order.append(f"{name} ends")

    async def both() -> None:
        turns.start()
        await asyncio.gather(read("a"), read("b"))

    for _ in range(2):  # each in an event loop of its own
        asyncio.run(both())
    assert order == ["a begins", "a ends", "b begins", "b ends"] * 2
    assert gc.isenabled()


def test_a_long_body_is_read_in_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(CountingEngine())  # type: ignore[arg-type]
    taken: list[int] = []
    start = app.state.service.turns.start
    monkeypatch.setattr(app.state.service.turns, "start", lambda: (taken.append(0), start())[1])
    with serving(app) as url:
        lock = app.state.service.turns._lock
        acquire = lock.acquire
        monkeypatch.setattr(lock, "acquire", lambda: (taken.append(1), acquire())[1])
        asked = {"model": "counting", "prompt": [1], "max_tokens": 1}
        for user, turns in [("", [0]), ("x" * LONG_BODY, [0, 1])]:
            answer = httpx.post(f"{url}/v1/completions", json=asked | {"user": user})
            assert answer.status_code == 200
            assert taken == turns
