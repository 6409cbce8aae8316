"""`generate` with guesses: the same answer in fewer steps, over every cache that can take guesses back."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import labcore
from labcore.cache import create
from labcore.errors import CacheFull, ConfigError, NotSupported
from labcore.generation import DraftModel, PromptLookup
from labcore.generation.speculation import drafter
from tests.serving.helpers import VOCAB, prompt, small_model

MODEL = small_model()
STORY = labcore.load("story")
REWINDING = ["contiguous", "paged:block_size=4", "growing", "none", "offloaded"]


class Told:
    """Guesses from an answer that is known, wrong at some places. What it was asked is kept."""

    def __init__(self, answer: list[int], start: int, length: int, wrong: set[int] = frozenset()) -> None:
        self.answer, self.start, self.length, self.wrong = answer, start, length, wrong

    def guess(self, known: Sequence[int], key: Hashable, limit: int) -> list[int]:
        at = len(known) - self.start
        true = self.answer[at : at + self.length]
        return [(token + 1) % VOCAB if at + i in self.wrong else token for i, token in enumerate(true)]


@settings(max_examples=40, deadline=None)
@given(
    cache=st.sampled_from(REWINDING),
    length=st.integers(1, 9),
    wrong=st.sets(st.integers(0, 19)),
    new=st.integers(1, 20),
    temperature=st.sampled_from([0.0, 0.9]),
)
def test_a_greedy_answer_is_the_same_whatever_is_guessed(
    cache: str, length: int, wrong: set[int], new: int, temperature: float
) -> None:
    asked = prompt(7)
    plain = labcore.generate(MODEL, asked, max_new_tokens=new, ignore_eos=True)
    told = Told(plain.tokens, len(asked), length, wrong)
    how = {"max_new_tokens": new, "ignore_eos": True, "cache": cache, "speculation": told}
    out = labcore.generate(MODEL, asked, temperature=temperature, seed=3, **how)
    assert len(out.tokens) == len(out.step_seconds) == new
    assert 0 <= out.accepted <= out.drafted
    if temperature == 0.0:
        assert out.tokens == plain.tokens
        steps = sum(seconds > 0 for seconds in out.step_seconds)
        assert steps == 1 + (new - 1) - out.accepted


def test_true_guesses_save_steps() -> None:
    plain = labcore.generate(MODEL, prompt(7), max_new_tokens=21, ignore_eos=True)
    told = Told(plain.tokens, 7, 4)
    out = labcore.generate(MODEL, prompt(7), max_new_tokens=21, ignore_eos=True, speculation=told)
    assert (out.drafted, out.accepted) == (16, 16)
    assert [seconds > 0 for seconds in out.step_seconds] == [True, *[True, *[False] * 4] * 4]


@pytest.mark.parametrize("name", ["lookup", "story-draft"])
def test_the_embedded_model_tells_the_same_story(name: str) -> None:
    asked = "Once upon a time there was a little girl named Lily. She"
    plain = labcore.generate(STORY, asked, max_new_tokens=150)
    out = labcore.generate(STORY, asked, max_new_tokens=150, speculation=drafter(name, STORY))
    assert (out.text, out.tokens, out.finish_reason) == (plain.text, plain.tokens, plain.finish_reason)
    if name == "story-draft":
        assert out.accepted > out.drafted / 3
    streamed = list(labcore.stream(STORY, asked, max_new_tokens=150, speculation=drafter(name, STORY)))
    assert [step.token for step in streamed] == plain.tokens
    assert "".join(step.text for step in streamed) == plain.text


def test_a_stop_among_guesses_ends() -> None:
    asked = "Once upon a time there was a little girl named Lily. She"
    plain = labcore.generate(STORY, asked, max_new_tokens=80, stop=". ")
    told = Told(labcore.generate(STORY, asked, max_new_tokens=80).tokens, len(plain.prompt_tokens), 8)
    out = labcore.generate(STORY, asked, max_new_tokens=80, stop=". ", speculation=told)
    assert (out.text, out.tokens, out.finish_reason) == (plain.text, plain.tokens, "stop")


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"cache": "sliding_window:window=8"}, "a sliding_window cache cannot"),
        ({"cache": "heavy_hitters"}, "a heavy_hitters cache cannot"),
        ({"cache": "int8"}, "a quantized cache cannot"),
        ({"trace": True}, "leave out trace"),
        ({"step": "compiled"}, "needs step='eager'"),
        ({"num_beams": 2}, "not speculation; set num_beams=1"),
    ],
)
def test_what_cannot_be_guessed_for_is_said(how: dict[str, object], why: str) -> None:
    with pytest.raises(NotSupported, match=why):
        labcore.generate(MODEL, prompt(5), speculation=PromptLookup(), **how)
    with pytest.raises(NotSupported, match="one prompt at a time; labcore.serving.LLMEngine"):
        labcore.generate(MODEL, [prompt(5), prompt(6)], speculation=PromptLookup())


def test_a_command_names_what_guesses() -> None:
    assert drafter(None, STORY) is None
    assert isinstance(drafter("lookup", STORY), PromptLookup)
    draft = drafter("story-draft", STORY, 6)
    assert isinstance(draft, DraftModel)
    assert (draft.tokens, draft.draft.name) == (6, "story-draft")
    with pytest.raises(ConfigError, match="same vocabulary"):
        drafter("shape:smollm2-135m", STORY)


# What a draft model is made of: greedy steps on end


@settings(max_examples=25, deadline=None)
@given(
    cache=st.sampled_from(["contiguous", "paged:block_size=4", "growing", "int8"]),
    known=st.integers(1, 6),
    held=st.integers(0, 4),
    count=st.integers(1, 12),
    fast=st.booleans(),
)
def test_greedy_steps_on_end_are_generates(cache: str, known: int, held: int, count: int, fast: bool) -> None:
    """However many tokens the cache holds already, natively or step by step."""
    tokens = prompt(held + known)
    expected = labcore.generate(MODEL, tokens, max_new_tokens=count, ignore_eos=True, cache=cache).tokens
    transformer = MODEL.transformer
    transformer.fast = fast
    try:
        made = create(cache, MODEL.config, capacity=40)
        if held:
            with torch.inference_mode():
                transformer(torch.tensor([tokens[:held]]), made)
        assert transformer.greedy(tokens[held:], count, made) == expected or cache == "int8"
        assert made.length == len(tokens) + count - 1
    finally:
        transformer.fast = True


def test_greedy_steps_need_room() -> None:
    made = create("contiguous", MODEL.config, capacity=8)
    with pytest.raises(CacheFull, match="holds 0 of 8"):
        MODEL.transformer.greedy([3], 9, made)
    assert made.length == 0
    assert len(MODEL.transformer.greedy([3], 8, made)) == 8
