"""`generate` with guesses: the same answer in fewer steps, over every cache that can take guesses back."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import labcore
from labcore.cache import create
from labcore.errors import CacheFull, ConfigError, NotSupported
from labcore.generation import DraftModel, PromptLookup
from labcore.generation.sampling import Points, Sampler, SamplingParams, process_logits
from labcore.generation.speculation import check, drafter
from tests.serving.helpers import VOCAB, prompt, small_model

MODEL = small_model()
STORY = labcore.load("story")
SAMPLINGS: list[dict[str, Any]] = [
    {}, {"temperature": 0.9}, {"temperature": 1.3, "top_k": 5, "min_p": 0.1},
    {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.3}, {"repetition_penalty": 1.5},
]  # fmt: skip
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
    sampling=st.sampled_from(SAMPLINGS),
)
def test_an_answer_is_the_same_whatever_is_guessed(
    cache: str, length: int, wrong: set[int], new: int, sampling: dict[str, float]
) -> None:
    asked = prompt(7)
    how = {"max_new_tokens": new, "ignore_eos": True, "cache": cache, "seed": 3, **sampling}
    plain = labcore.generate(MODEL, asked, **how)
    out = labcore.generate(MODEL, asked, speculation=Told(plain.tokens, len(asked), length, wrong), **how)
    assert out.tokens == plain.tokens
    assert len(out.tokens) == len(out.step_seconds) == new
    assert 0 <= out.accepted <= out.drafted
    steps = sum(seconds > 0 for seconds in out.step_seconds)
    assert steps == 1 + (new - 1) - out.accepted


def test_true_guesses_save_steps() -> None:
    plain = labcore.generate(MODEL, prompt(7), max_new_tokens=21, ignore_eos=True)
    told = Told(plain.tokens, 7, 4)
    out = labcore.generate(MODEL, prompt(7), max_new_tokens=21, ignore_eos=True, speculation=told)
    assert (out.drafted, out.accepted) == (16, 16)
    assert [seconds > 0 for seconds in out.step_seconds] == [True, *[True, *[False] * 4] * 4]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", ["lookup", "story-draft"])
def test_the_embedded_model_tells_the_same_story(name: str, temperature: float) -> None:
    asked = "Once upon a time there was a little girl named Lily. She"
    how = {"max_new_tokens": 150, "temperature": temperature, "seed": 11}
    plain = labcore.generate(STORY, asked, **how)
    out = labcore.generate(STORY, asked, speculation=drafter(name, STORY), **how)
    assert (out.text, out.tokens, out.finish_reason) == (plain.text, plain.tokens, plain.finish_reason)
    if name == "story-draft":
        assert out.accepted > out.drafted / 3
    streamed = list(labcore.stream(STORY, asked, speculation=drafter(name, STORY), **how))
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


# What is right

ROWS = torch.tensor([[1.2, 0.3, -0.5, 0.8, -1.5], [-0.4, 1.0, 0.6, -2.0, 0.1], [0.0, 0.5, -1.0, 1.5, 0.2]])


@settings(max_examples=60, deadline=None)
@given(
    guesses=st.lists(st.integers(0, 4), min_size=2, max_size=2),
    sampling=st.sampled_from(SAMPLINGS),
    seed=st.integers(0, 99),
)
def test_checked_tokens_are_those_drawn_one_by_one(
    guesses: list[int], sampling: dict[str, Any], seed: int
) -> None:
    params = SamplingParams(**sampling, seed=seed)
    points, one_by_one = None if params.greedy else Points(seed).of(0, 3), Sampler(params, 1)
    tokens = check(guesses, ROWS, params, points, lambda: [0, 1])
    before = [0, 1]
    for row in ROWS[: len(tokens)].split(1):
        before += one_by_one(row, torch.tensor([before])).tolist()
    assert tokens == before[2:]
    assert tokens[:-1] == guesses[: len(tokens) - 1]
    assert len(tokens) == 3 or tokens[-1] != guesses[len(tokens) - 1]


@pytest.mark.parametrize("guess", range(5))
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_guess_is_accepted_as_often_as_it_is_likely(guess: int, sampling: dict[str, Any]) -> None:
    """Over random numbers at equal distances: no rate but the true one is within one of them."""
    params, many = SamplingParams(**sampling), 200
    expected = process_logits(ROWS[:1], params, torch.tensor([[0, 1]]))[0].softmax(-1)
    counts = torch.zeros(5)
    for number in range(many):
        points = torch.tensor([(number + 0.5) / many, 0.5])
        tokens = check([guess], ROWS[:2], params, None if params.greedy else points, lambda: [0, 1])
        counts[tokens[0]] += 1
        assert (len(tokens) == 2) == (tokens[0] == guess)
    if params.greedy:
        assert counts.argmax() == expected.argmax()
        assert counts.max() == many
    else:
        assert float((counts / many - expected).abs().max()) <= 1 / many


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
