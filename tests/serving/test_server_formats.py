"""What is answered holds what the engine said: tokens, logprobs, seeds, usage, in OpenAI's forms."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

import labcore
from labcore.generation import SamplingParams, generate
from labcore.generation.stopping import Stopping
from labcore.model import Model
from labcore.serving import LLMEngine, Request, TokenLogprob
from labcore.serving.server import create_app, plain_template, serving
from labcore.serving.server.api_types import ChatBody, CompletionBody, Message
from labcore.serving.server.logprobs import LEAST, Speller
from tests.serving.fakes_server import CountingEngine
from tests.spellings import TOKENIZERS

pytestmark = pytest.mark.timeout(60)
PROMPT = "Once upon a time"
CHAT: list[Any] = [
    {"role": "system", "content": "You tell stories."},
    {"role": "user", "content": [{"type": "text", "text": "Once "}, {"type": "text", "text": "upon"}]},
]


@pytest.fixture(scope="module")
def story() -> Model:
    return labcore.load("story", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def url(story: Model) -> Iterator[str]:
    with serving(create_app(LLMEngine(story, num_blocks=256))) as found:
        yield found


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made


def engine_logprobs(model: Model, prompt: str, new: int, count: int) -> list[TokenLogprob]:
    """What the engine itself says, without a server."""
    assert model.tokenizer is not None
    engine = LLMEngine(model, num_blocks=64)
    tokens = tuple(model.tokenizer.encode(prompt, model.tokenizer.adds_bos))
    engine.add(Request("a", tokens, SamplingParams(), Stopping(new), logprobs=count))
    found: list[TokenLogprob] = []
    while engine.has_work:
        found += [one for output in engine.step() for one in output.logprobs]
    return found


def test_logprobs_of_completions_are_the_engine_s(client: openai.OpenAI, story: Model) -> None:
    asked = {"model": "story", "prompt": PROMPT, "max_tokens": 20, "temperature": 0, "logprobs": 3}
    choice = client.completions.create(**asked).choices[0]
    told, expected = choice.logprobs, engine_logprobs(story, PROMPT, 20, 3)
    assert told is not None
    assert told.token_logprobs == pytest.approx([one.logprob for one in expected], abs=1e-4)
    assert [len(top) for top in told.top_logprobs or []] == [3] * 20
    assert "".join(told.tokens or []) == choice.text
    for token, offset in zip(told.tokens or [], told.text_offset or [], strict=True):
        assert choice.text[offset:].startswith(token)
    for token, logprob, top in zip(
        told.tokens or [], told.token_logprobs or [], told.top_logprobs or [], strict=True
    ):
        assert top[token] == logprob == max(top.values())


def test_logprobs_of_chat_are_the_engine_s(client: openai.OpenAI, story: Model) -> None:
    found = client.chat.completions.create(
        model="story", messages=CHAT, max_completion_tokens=10, temperature=0, logprobs=True, top_logprobs=2
    )
    prompt = "system: You tell stories.\nuser: Once upon\nassistant:"
    expected = engine_logprobs(story, prompt, 10, 2)
    assert found.choices[0].logprobs is not None
    told = found.choices[0].logprobs.content or []
    assert [one.logprob for one in told] == pytest.approx([one.logprob for one in expected], abs=1e-4)
    assert b"".join(bytes(one.bytes or []) for one in told).decode() == found.choices[0].message.content
    assert all([top.token for top in one.top_logprobs][0] == one.token for one in told)
    assert found.choices[0].message.content == generate(story, prompt, max_new_tokens=10).text


def test_streamed_logprobs_are_those_of_the_whole(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "story", "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
    whole = client.completions.create(**asked, logprobs=1).choices[0].logprobs
    stream = client.completions.create(**asked, logprobs=1, stream=True)
    parts = [chunk.choices[0].logprobs for chunk in stream]
    assert whole is not None
    assert [token for part in parts if part for token in part.tokens or []] == whole.tokens
    assert [offset for part in parts if part for offset in part.text_offset or []] == whole.text_offset


def test_token_names_of_odd_tokens() -> None:
    tokenizer = labcore.load("story", device="cpu").tokenizer
    assert tokenizer is not None
    half = tokenizer.encode("é")
    told = Speller(tokenizer).completion([TokenLogprob(token, -1.0) for token in [1, *half]])
    assert told.tokens[0] == tokenizer.piece(1)  # a special token, which adds no text
    assert told.text_offset[:2] == [0, 0]
    if len(half) > 1:
        assert told.tokens[1:] == ["bytes:\\xc3", "bytes:\\xa9"]
    nobody = Speller(None)
    assert nobody.completion([TokenLogprob(7, float("-inf"))]).token_logprobs == [LEAST]
    assert nobody.chat([TokenLogprob(7, -1.0)]).content[0].token == "token_id:7"
    assert nobody.chat([TokenLogprob(7, -1.0)]).content[0].bytes is None


def test_no_two_tokens_share_a_name() -> None:
    """Completions name their best tokens in an object, where one of two alike would be lost."""
    for name in ("byte_level", "byte_fallback", "metaspace"):
        tokenizer = TOKENIZERS[name]
        every = [TokenLogprob(token, -1.0) for token in range(tokenizer.vocab_size)]
        names = Speller(tokenizer).completion(every).tokens
        assert len(set(names)) == len(names)


def test_offsets_are_those_of_the_text_behind_its_prompt() -> None:
    """▁the and ▁the: the first one's space is part of the text, since a prompt stands before it."""
    tokenizer = TOKENIZERS["byte_fallback"]
    the = next(token for token in range(tokenizer.vocab_size) if tokenizer.piece(token) == "▁the")
    told = Speller(tokenizer, tokenizer.encode("cat")).completion([TokenLogprob(the, -1.0)] * 2)
    assert told.text_offset == [0, len(" the")]


def test_choice_i_is_the_answer_to_seed_plus_i(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "story", "prompt": PROMPT, "max_tokens": 12, "temperature": 1.0}
    together = client.completions.create(**asked, n=3, seed=11)
    alone = [client.completions.create(**asked, seed=11 + i).choices[0].text for i in range(3)]
    assert [choice.text for choice in together.choices] == alone
    assert len(set(alone)) > 1
    assert together.usage is not None
    assert together.usage.completion_tokens == 36
    one = client.completions.create(**asked, seed=1).usage
    assert one is not None
    assert together.usage.prompt_tokens == one.prompt_tokens


def test_without_a_seed_no_two_answers_are_alike(client: openai.OpenAI) -> None:
    found = client.completions.create(model="story", prompt=PROMPT, max_tokens=40, n=4)
    assert len({choice.text for choice in found.choices}) > 1


def test_a_stop_string_ends_an_answer_and_is_not_shown(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "story", "prompt": PROMPT, "max_tokens": 30, "temperature": 0}
    whole = client.completions.create(**asked).choices[0].text
    stop = whole.split(".")[0][-3:] + "."
    for stream in (False, True):
        found = client.completions.create(**asked, stop=[stop, "unheard"], stream=stream)
        choices = [chunk.choices[0] for chunk in found] if stream else [found.choices[0]]
        assert "".join(choice.text for choice in choices) == whole.split(stop)[0]
        assert choices[-1].finish_reason == "stop"


def test_token_ids_in_and_out(client: openai.OpenAI, story: Model) -> None:
    assert story.tokenizer is not None
    ids = story.tokenizer.encode(PROMPT, add_bos=True)
    asked: dict[str, Any] = {"model": "story", "max_tokens": 6, "temperature": 0}
    many = client.completions.create(**asked, prompt=[ids, ids[:3]], extra_body={"return_token_ids": True})
    expected = [generate(story, one, max_new_tokens=6).tokens for one in (ids, ids[:3])]
    assert [choice.token_ids for choice in many.choices] == expected  # type: ignore[attr-defined]
    text = client.completions.create(**asked, prompt=PROMPT)
    single = client.completions.create(**asked, prompt=ids)
    assert text.choices[0].text == single.choices[0].text == many.choices[0].text


def test_the_events_of_a_chat_are_openai_s(url: str) -> None:
    body = {"model": "story", "messages": CHAT, "max_tokens": 3, "temperature": 0, "stream": True}
    sent = httpx.post(f"{url}/v1/chat/completions", json=body | {"stream_options": {"include_usage": True}})
    assert sent.headers["content-type"].startswith("text/event-stream")
    lines = sent.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert deltas[-1] == {}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * 4 + ["length"]
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * 5
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 3


def test_the_client_of_asyncio_works_too(url: str, story: Model) -> None:
    async def ask() -> tuple[str, str, str | None]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            asked: dict[str, Any] = {"model": "story", "max_tokens": 8, "temperature": 0}
            text = ""
            async for chunk in await client.completions.create(**asked, prompt=PROMPT, stream=True):
                text += chunk.choices[0].text
            whole, chat = await asyncio.gather(
                client.completions.create(**asked, prompt=PROMPT),
                client.chat.completions.create(**asked, messages=CHAT),
            )
            with pytest.raises(openai.NotFoundError):
                await client.models.retrieve("nobody")
            return text, whole.choices[0].text, chat.choices[0].message.content

    text, whole, chat = asyncio.run(ask())
    assert text == whole == generate(story, PROMPT, max_new_tokens=8).text
    assert chat


def test_a_template_of_the_owner_s_is_used(story: Model) -> None:
    def shout(messages: Any) -> str:
        return messages[-1].text.upper()

    messages: list[Any] = [{"role": "user", "content": "the dog"}]
    with (
        serving(create_app(LLMEngine(story, num_blocks=64), chat_template=shout)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        found = client.chat.completions.create(model="story", messages=messages, max_tokens=5, temperature=0)
    assert found.choices[0].message.content == generate(story, "THE DOG", max_new_tokens=5).text


def test_the_plain_template_says_who_speaks() -> None:
    messages = [Message(role="user", content="Hi"), Message(role="assistant", content=None)]
    assert plain_template(messages) == "user: Hi\nassistant: \nassistant:"


def test_settings_reach_the_sampler() -> None:
    body = CompletionBody(
        model="m", prompt="a", n=2, seed=-1, temperature=0.5, top_p=0.9, top_k=-1, min_p=0.1,
        repetition_penalty=1.2, ignore_eos=True, stop="x", presence_penalty=0,
    )  # fmt: skip
    first, second = body.samplings()
    assert first == SamplingParams(0.5, 0, 0.9, 0.1, 1.2, 2**63 - 1)
    assert second.seed == 0
    assert body.stopping(7) == Stopping(7, "x", True)
    assert CompletionBody(model="m", prompt="a").samplings()[0].temperature == 1.0
    assert CompletionBody(model="m", prompt="a", temperature=1e-300).samplings()[0].greedy


def test_either_name_limits_a_chat() -> None:
    asked: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
    assert ChatBody(**asked).limit is None
    assert ChatBody(**asked, max_tokens=3).limit == 3
    assert ChatBody(**asked, max_tokens=3, max_completion_tokens=2).limit == 2
    with pytest.raises(ValueError, match="without logprobs"):
        ChatBody(**asked, top_logprobs=2)


# Metrics


def metrics_of(url: str) -> dict[tuple[str, str], float]:
    """Sample name and label of interest -> value."""
    found = {}
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics").text):
        for sample in family.samples:
            found[(sample.name, sample.labels.get("finished_reason", ""))] = sample.value
    return {key: value for key, value in found.items() if not key[0].endswith("_bucket")}


def test_metrics_count_what_the_engine_did(story: Model) -> None:
    engine = LLMEngine(story, num_blocks=64)
    with serving(create_app(engine)) as url:
        body = {"model": "story", "prompt": "The dog ran. " * 8, "max_tokens": 6, "ignore_eos": True, "n": 2}
        for _ in range(2):
            assert httpx.post(f"{url}/v1/completions", json=body).status_code == 200
        found = metrics_of(url)
    stats = engine.stats
    assert found[("labcore:generation_tokens_total", "")] == 24 == stats.output_tokens
    assert found[("labcore:prompt_tokens_total", "")] == stats.prompt_tokens > 0
    assert found[("labcore:prefix_cache_queries_total", "")] == stats.prefix_queries > 0
    assert found[("labcore:prefix_cache_hits_total", "")] == stats.prefix_hits > 0
    assert found[("labcore:time_to_first_token_seconds_count", "")] == 4
    assert found[("labcore:inter_token_latency_seconds_count", "")] == 20
    assert found[("labcore:e2e_request_latency_seconds_count", "")] == 4
    assert found[("labcore:request_success_total", "length")] == 4
    assert found[("labcore:request_success_total", "abort")] == 0
    assert found[("labcore:num_requests_running", "")] == found[("labcore:num_requests_waiting", "")] == 0
    assert found[("labcore:kv_cache_usage_perc", "")] == 0
    assert found[("labcore:num_preemptions_total", "")] == 0
    waits = [found[(f"labcore:{name}_seconds_sum", "")] for name in
             ("time_to_first_token", "inter_token_latency", "e2e_request_latency")]  # fmt: skip
    assert waits[2] == pytest.approx(waits[0] + waits[1])  # first token, and all the gaps behind it


def test_every_app_counts_for_itself() -> None:
    body = {"model": "counting", "prompt": [1], "max_tokens": 2}
    apps = [create_app(CountingEngine()) for _ in range(2)]  # type: ignore[arg-type]
    with serving(apps[0]) as asked, serving(apps[1]) as idle:
        httpx.post(f"{asked}/v1/completions", json=body)
        assert metrics_of(asked)[("labcore:request_success_total", "length")] == 1
        assert metrics_of(idle)[("labcore:request_success_total", "length")] == 0
