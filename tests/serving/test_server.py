"""The server over a real socket, asked by the official client and by plain HTTP."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

import labcore
from labcore.generation import generate
from labcore.model import Model
from labcore.serving import LLMEngine, RequestOutput
from labcore.serving.server import Limits, create_app, serving

pytestmark = pytest.mark.timeout(60)
PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def story() -> Model:
    return labcore.load("story", dtype="float32")


@pytest.fixture(scope="module")
def engine(story: Model) -> LLMEngine:
    return LLMEngine(story, num_blocks=256)


@pytest.fixture(scope="module")
def url(engine: LLMEngine) -> Iterator[str]:
    before = threading.active_count()
    with serving(create_app(engine, api_key="secret", limits=Limits())) as found:
        yield found
    assert threading.active_count() == before


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0) as made:
        yield made


def settled(engine: LLMEngine) -> bool:
    """Whether all requests are gone and every block free, within a few seconds."""
    until = time.monotonic() + 10
    while engine.has_work and time.monotonic() < until:
        time.sleep(0.02)
    return not engine.has_work and engine.stats.blocks_used == 0


def test_completions_are_the_engine_s_text(client: openai.OpenAI, story: Model) -> None:
    found = client.completions.create(model="story", prompt=PROMPT, max_tokens=12, temperature=0, logprobs=2)
    alone = generate(story, PROMPT, max_new_tokens=12)
    assert found.choices[0].text == alone.text
    assert found.choices[0].finish_reason in ("length", "stop")
    assert found.usage is not None
    assert found.usage.completion_tokens == len(alone.tokens)
    assert found.choices[0].logprobs is not None
    assert len(found.choices[0].logprobs.token_logprobs or []) == len(alone.tokens)


def test_a_stream_adds_up_and_tells_its_usage(client: openai.OpenAI, story: Model) -> None:
    stream = client.completions.create(
        model="story", prompt=PROMPT, max_tokens=12, temperature=0, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    assert text == generate(story, PROMPT, max_new_tokens=12).text
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0


def test_several_prompts_and_several_answers(client: openai.OpenAI) -> None:
    found = client.completions.create(
        model="story", prompt=[PROMPT, "The"], n=2, max_tokens=5, temperature=1.0, seed=3
    )
    again = client.completions.create(
        model="story", prompt=[PROMPT, "The"], n=2, max_tokens=5, temperature=1.0, seed=3
    )
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in found.choices] == [choice.text for choice in again.choices]


def test_chat_answers_whole_and_streamed(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": PROMPT}]
    whole = client.chat.completions.create(model="story", messages=messages, max_tokens=8, temperature=0)
    stream = client.chat.completions.create(
        model="story", messages=messages, max_tokens=8, temperature=0, stream=True
    )
    parts = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert whole.choices[0].message.role == "assistant"
    assert "".join(parts) == whole.choices[0].message.content


def test_errors_are_the_client_s_own(url: str, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="nobody", prompt=PROMPT)
    with pytest.raises(openai.BadRequestError, match="2000 tokens and may be 1023"):
        client.completions.create(model="story", prompt=[1] * 2000, max_tokens=4)
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()


def test_models_health_and_metrics(url: str, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["story"]
    assert httpx.get(f"{url}/health").status_code == 200
    told = httpx.get(f"{url}/metrics").text
    for name in ("time_to_first_token_seconds", "kv_cache_usage_perc", "generation_tokens_total"):
        assert f"labcore:{name}" in told


def test_a_client_that_leaves_frees_its_blocks(url: str, engine: LLMEngine) -> None:
    body = {"model": "story", "prompt": PROMPT, "max_tokens": 900, "ignore_eos": True, "stream": True}
    headers = {"Authorization": "Bearer secret"}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, headers=headers) as answer:
        next(answer.iter_lines())
    assert settled(engine)


def test_many_streams_of_which_half_leave(url: str, engine: LLMEngine) -> None:
    failures: list[object] = []

    def ask(index: int) -> None:
        body = {"model": "story", "prompt": PROMPT, "max_tokens": 24, "ignore_eos": True, "stream": True}
        headers = {"Authorization": "Bearer secret"}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, headers=headers, timeout=30) as answer:
            lines = answer.iter_lines()
            if index % 2:
                next(lines)
                return
            if answer.status_code != 200 or list(filter(None, lines))[-1] != "data: [DONE]":
                failures.append(index)

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert settled(engine)


def test_an_engine_that_dies_is_told_and_nothing_hangs(story: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = LLMEngine(story, num_blocks=256)

    def fail() -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(broken, "step", fail)
    with serving(create_app(broken)) as found:
        body = {"model": "story", "prompt": PROMPT, "max_tokens": 4}
        first = httpx.post(f"{found}/v1/completions", json=body, timeout=20)
        assert first.status_code >= 500
        assert httpx.post(f"{found}/v1/completions", json=body, timeout=20).status_code == 503
        assert httpx.get(f"{found}/health").status_code == 503


def test_too_many_at_once_are_sent_away(story: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = LLMEngine(story, num_blocks=256)
    step = slow.step

    def slowly() -> list[RequestOutput]:
        time.sleep(0.02)
        return step()

    monkeypatch.setattr(slow, "step", slowly)
    with serving(create_app(slow, limits=Limits(max_concurrency=1))) as found:
        body = {"model": "story", "prompt": PROMPT, "max_tokens": 400, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{found}/v1/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)  # kept: a dropped iterator closes the answer, and the client would have left
            second = httpx.post(f"{found}/v1/completions", json=body | {"stream": False}, timeout=20)
        assert second.status_code == 429
        assert "Retry-After" in second.headers
