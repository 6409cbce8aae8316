"""Forty clients over a real socket, a pool that is too small for them, and half of them leave at random."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time

import httpx
import pytest

import labcore
from labcore.generation import generate
from labcore.serving import LLMEngine
from labcore.serving.server import Limits, create_app, serving

pytestmark = pytest.mark.timeout(90)
CLIENTS, TOKENS = 40, 48
PROMPT = "Once upon a time there was a"


async def _read(client: httpx.AsyncClient, leaves_after: int | None) -> str:
    """The text of a stream; a client that leaves closes its connection after some events, or before any."""
    body = {
        "model": "story", "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True,
        "stream": True,
    }  # fmt: skip
    text, seen = "", 0
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.status_code == 200
        if leaves_after == 0:
            return ""
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                return text
            if line:
                text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
                seen += 1
            if seen == leaves_after:
                return ""
    raise AssertionError("a stream ended without [DONE]")


async def _crowd(url: str) -> list[str]:
    chance = random.Random(0)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        leaving = [chance.randrange(TOKENS // 2) for _ in range(CLIENTS // 2)]
        return await asyncio.gather(*(_read(client, after) for after in [*[None] * (CLIENTS // 2), *leaving]))


def test_a_crowd_of_which_half_leaves() -> None:
    story = labcore.load("story", device="cpu", dtype="float32")
    engine = LLMEngine(story, num_blocks=24, block_size=8, max_num_seqs=8, prefix_caching=False)
    app = create_app(engine, limits=Limits(max_concurrency=CLIENTS))
    before = set(threading.enumerate())
    with serving(app) as url:
        found = asyncio.run(_crowd(url))
        end = time.monotonic() + 10
        while engine.has_work and time.monotonic() < end:
            time.sleep(0.01)
        stats = app.state.service.engine.stats
        assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)
        assert app.state.service.gate.taken == 0
        assert app.state.service.engine.unfinished == 0
    alone = generate(story, PROMPT, max_new_tokens=TOKENS, ignore_eos=True).text
    assert found[: CLIENTS // 2] == [alone] * (CLIENTS // 2)
    assert engine.stats.preemptions > 0  # the pool really was too small
    assert set(threading.enumerate()) == before
