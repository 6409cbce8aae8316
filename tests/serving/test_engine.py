"""The engine's tokens are those of `labcore.generate` alone, whatever happens on the way."""

from __future__ import annotations

from typing import Any

import pytest

import labcore
from labcore.errors import CacheFull, ConfigError, PromptError
from labcore.generation.stopping import Stopping
from labcore.model import Model
from labcore.quality import heldout
from labcore.serving import DraftModel, LLMEngine, PromptLookup, Request, Static, answer

LENGTHS = (5, 17, 33, 64, 16, 100, 200, 1, 40, 48, 80, 31)


@pytest.fixture(scope="module")
def story() -> Model:
    return labcore.load("story", dtype="float32")


@pytest.fixture(scope="module")
def prompts(story: Model) -> list[list[int]]:
    assert story.tokenizer is not None
    texts = heldout.stories(len(LENGTHS), 0)
    encoded = [story.tokenizer.encode(text, add_bos=True) for text in texts]
    return [tokens[:length] for tokens, length in zip(encoded, LENGTHS, strict=True)]


@pytest.fixture(scope="module")
def alone(story: Model, prompts: list[list[int]]) -> list[list[int]]:
    return [labcore.generate(story, prompt, max_new_tokens=20).tokens for prompt in prompts]


WAYS: dict[str, dict[str, Any]] = {
    "continuous": {},
    "tiny budget": {"token_budget": 16},
    "recomputed": {"num_blocks": 24, "token_budget": 64, "preemption": "recompute"},
    "swapped": {"num_blocks": 24, "preemption": "swap"},
    "static": {"policy": "static"},
    "static of three": {"policy": Static(3)},
    "one by one": {"policy": "one-by-one"},
    "dynamic, whole prompts": {"policy": "dynamic", "chunked": False},
    "small blocks, no prefixes": {"max_num_seqs": 3, "block_size": 4, "prefix_caching": False},
    "prompt lookup": {"speculation": PromptLookup()},
}


@pytest.mark.parametrize("way", WAYS)
def test_greedy_tokens_are_the_same_alone(
    way: str, story: Model, prompts: list[list[int]], alone: list[list[int]]
) -> None:
    engine = LLMEngine(story, **{"max_model_len": 400, **WAYS[way]})
    for _ in range(2):  # the second time with prefix hits
        assert [one.tokens for one in answer(engine, prompts, max_new_tokens=20)] == alone
        engine.blocks.check(engine.scheduler.running)
        assert engine.stats.blocks_used == 0
    if way in ("recomputed", "swapped"):
        assert engine.stats.preemptions > 0
        assert any(event.swapped for event in engine.events) == (way == "swapped")
    if engine.blocks.tree is not None:
        assert engine.stats.prefix_hits > 0


def test_a_draft_model_saves_steps_and_changes_no_token(
    story: Model, prompts: list[list[int]], alone: list[list[int]]
) -> None:
    draft = labcore.load("story-draft", dtype="float32")
    engine = LLMEngine(story, max_model_len=400, speculation=DraftModel(draft, story))
    assert [one.tokens for one in answer(engine, prompts, max_new_tokens=20)] == alone
    assert 0 < engine.stats.accepted <= engine.stats.drafted
    assert engine.stats.steps < 20


def test_sampled_tokens_are_the_same_alone(story: Model, prompts: list[list[int]]) -> None:
    engine = LLMEngine(story, max_model_len=400, token_budget=48)
    found = answer(engine, prompts[:6], max_new_tokens=12, temperature=0.8, top_p=0.9, seed=7)
    for index, one in enumerate(found):
        out = labcore.generate(
            story, prompts[index], max_new_tokens=12, temperature=0.8, top_p=0.9, seed=7 + index
        )
        assert one.tokens == out.tokens
        assert one.text == out.text


def test_events_tell_what_was_computed(story: Model, prompts: list[list[int]]) -> None:
    engine = LLMEngine(story, max_model_len=400, prefix_caching=False, token_budget=64)
    found = answer(engine, prompts, max_new_tokens=8, ignore_eos=True)
    computed = sum(map(len, prompts)) + sum(len(one.tokens) - 1 for one in found)
    assert sum(event.tokens for event in engine.events) == computed
    assert all(event.tokens <= 64 for event in engine.events)
    ended = [id for event in engine.events for id, _ in event.finished]
    assert sorted(ended) == sorted(one.id for one in found)
    assert engine.stats.prompt_tokens == sum(map(len, prompts))
    assert engine.stats.output_tokens == sum(len(one.tokens) for one in found)


def test_a_static_batch_keeps_its_places(story: Model) -> None:
    """Lengths 2, 6, 3, 4: 15 useful of 24 places, 62.5 %."""
    engine = LLMEngine(story, Static(4), num_blocks=64)
    for index, length in enumerate((2, 6, 3, 4)):
        engine.add(Request(f"r{index}", (5, 6, 7), stopping=Stopping(length, ignore_eos=True)))
    while engine.has_work:
        engine.step()
    rows = [row for event in engine.events for row in event.rows]
    assert (sum(row.drawn for row in rows), len(rows)) == (15, 24)


def test_what_cannot_be_served_is_refused_and_leaves_nothing(story: Model) -> None:
    engine = LLMEngine(story, num_blocks=4, max_model_len=400)
    for prompt, error in (((), PromptError), ((1,) * 400, PromptError), ((5000,), PromptError)):
        with pytest.raises(error):
            engine.add(Request("a", prompt))
    with pytest.raises(CacheFull, match="need 6 blocks and the pool has 4"):
        engine.add(Request("a", (1,) * 20, stopping=Stopping(64)))
    with pytest.raises(ConfigError, match="There is no policy"):
        LLMEngine(story, "fair")
    assert not engine.has_work
    engine.add(Request("a", (1, 2), stopping=Stopping(8)))
    with pytest.raises(ValueError, match="unique"):
        engine.add(Request("a", (1, 2), stopping=Stopping(8)))
    engine.step()
    assert engine.abort("a") is not None
    assert engine.abort("a") is None
    assert engine.stats.blocks_used == 0
