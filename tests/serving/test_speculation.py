"""Guesses change how many steps an answer takes, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

import labcore
from labcore.errors import ConfigError
from labcore.generation.speculation import Drafter
from labcore.serving import DraftModel, LLMEngine, PromptLookup, Request
from tests.serving.helpers import EOS, VOCAB, alone, drain, empty, prompt, request, small_model

MODEL = small_model()
NEW = 24
PENALISED = {"temperature": 0.9, "top_p": 0.9, "repetition_penalty": 1.2}


class Oracle:
    """Knows every answer. right: how many of its guesses are; then wrong ones, `length` in all."""

    def __init__(self, answers: dict[str, list[int]], right: int, length: int) -> None:
        self.answers, self.right, self.length = answers, right, length

    def guess(self, known: list[int], key: str, limit: int) -> list[int]:
        prompts = {one.id: len(one.prompt) for one in requests_of()}
        true = self.answers[key][len(known) - prompts[key] :]
        kept = true[: min(self.right, self.length)]
        after = (true[len(kept) :] + [0] * self.length)[: self.length - len(kept)]
        return kept + [(token + 1) % VOCAB for token in after]


def requests_of(count: int = 5, **settings: Any) -> list[Request]:
    """Some go on to their limit, some end before."""
    return [
        request(f"r{index}", prompt(3 + 4 * index, index), NEW, ignore_eos=index < 2, **settings)
        for index in range(count)
    ]


@pytest.fixture(scope="module")
def answers() -> dict[str, list[int]]:
    found = {one.id: alone(MODEL, one).tokens for one in requests_of()}
    assert any(tokens[-1] == EOS for tokens in found.values()), "one should end by itself"
    return found


@pytest.mark.parametrize(
    ("right", "length"), [(0, 4), (99, 4), (2, 5), (99, 200), (0, 200), (99, 1)],
    ids=["all wrong", "all right", "half", "right and over the limit", "wrong and over the limit", "one"],
)  # fmt: skip
@pytest.mark.parametrize(
    "settings",
    [{}, {"token_budget": 7}, {"num_blocks": 12, "block_size": 4}, {"policy": "static", "block_size": 1}],
    ids=["roomy", "small budget", "small pool", "static"],
)
def test_greedy_answers_are_the_same_under_any_guesses(
    right: int, length: int, settings: dict[str, Any], answers: dict[str, list[int]]
) -> None:
    oracle = Oracle(answers, right, length)
    engine = LLMEngine(MODEL, **{"num_blocks": 80, "speculation": oracle, **settings})
    for one in requests_of():
        engine.add(one)
    heard = drain(engine)
    assert {id: one.tokens for id, one in heard.items()} == answers
    stats = engine.stats
    assert stats.drafted > 0
    if right == 0:
        assert stats.accepted == 0
    if right == 99 and not settings:
        # Every guess is true but those behind an end. (A limit cuts guesses before they are counted.)
        assert stats.accepted > 0.8 * stats.drafted or length == 200
        assert stats.steps < NEW
    empty(engine)


def test_true_guesses_save_steps(answers: dict[str, list[int]]) -> None:
    """Four guesses a step: 24 tokens are a prefill and five steps."""
    id, tokens = next((id, tokens) for id, tokens in answers.items() if len(tokens) == NEW)
    engine = LLMEngine(MODEL, num_blocks=20, speculation=Oracle(answers, 4, 4))
    engine.add(next(one for one in requests_of() if one.id == id))
    drain(engine)
    assert [event.drawn for event in engine.events] == [1, 5, 5, 5, 5, 3]
    assert (engine.stats.drafted, engine.stats.accepted) == (18, 18)
    assert sum(event.tokens for event in engine.events) == engine.stats.prompt_tokens + len(tokens) - 1


def test_an_end_among_the_guesses_ends(answers: dict[str, list[int]]) -> None:
    id, tokens = next((id, tokens) for id, tokens in answers.items() if tokens[-1] == EOS)
    longer = {id: tokens + [3, 3, 3, 3, 3, 3]}
    engine = LLMEngine(MODEL, num_blocks=20, speculation=Oracle(longer, 6, 6))
    engine.add(next(one for one in requests_of() if one.id == id))
    heard = drain(engine)[id]
    assert heard.tokens == tokens
    assert heard.reason == "eos"
    assert sum(event.drawn for event in engine.events) == len(tokens)
    assert engine.stats.accepted <= len(tokens) - 1


# Logprobs


@pytest.mark.parametrize("right", [0, 2, 99])
def test_logprobs_are_those_of_the_model(right: int, answers: dict[str, list[int]]) -> None:
    engine = LLMEngine(MODEL, num_blocks=80, speculation=Oracle(answers, right, 4), token_budget=9)
    requests = requests_of(logprobs=3)
    for one in requests:
        engine.add(one)
    heard = drain(engine)
    for one in requests:
        told = heard[one.id].logprobs
        assert [entry.token for entry in told] == answers[one.id]
        logs = labcore.logits(MODEL, [*one.prompt, *answers[one.id]]).log_softmax(-1)[0]
        for place, entry in enumerate(told, start=len(one.prompt) - 1):
            assert entry.logprob == pytest.approx(float(logs[place, entry.token]), abs=1e-4)
            best = logs[place].topk(3)
            assert [token for token, _ in entry.top] == best.indices.tolist()
            assert [value for _, value in entry.top] == pytest.approx(best.values.tolist(), abs=1e-4)


# Those who guess


@pytest.mark.parametrize(
    ("known", "guessed"),
    [
        ([1, 2, 3, 4, 5, 1, 2, 3], [4, 5, 1, 2]),  # three in a row
        ([7, 3, 9, 2, 3, 8, 1, 3], [8, 1, 3]),  # one, its latest place
        ([9, 2, 3, 5, 7, 3, 6, 2, 3], [5, 7, 3, 6]),  # two before one, though the one is later
        ([4, 4], [4]),
        ([1, 2, 3], []),
        ([1], []),
    ],
)
def test_prompt_lookup_copies_what_followed(known: list[int], guessed: list[int]) -> None:
    assert PromptLookup(tokens=4, longest=3).guess(known, "a", 99) == guessed


def test_prompt_lookup_sees_tokens_and_not_their_bytes() -> None:
    """256 and 1 lie in memory as 0 1 0 0 1 0 0 0: 65536 begins in the middle of them."""
    assert PromptLookup(shortest=1).guess([256, 1, 5, 65536], "a", 99) == []
    assert PromptLookup(shortest=1).guess([65536, 256, 1, 5, 65536], "a", 99) == [256, 1, 5, 65536]


def test_a_draft_model_guesses_what_it_would_generate() -> None:
    draft = small_model(3, eos=False)
    drafter = DraftModel(draft, MODEL, tokens=5)
    for grown in ([1, 2, 3], [1, 2, 3, 9], [1, 2, 3, 9, 9, 4, 4], [1, 2, 5], [8]):  # also back, and elsewhere
        assert drafter.guess(grown, "a", 40) == labcore.generate(draft, grown, max_new_tokens=5).tokens


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 7}, {**PENALISED, "seed": 5}])
@pytest.mark.parametrize("drafter", ["itself", "another", "lookup"])
@pytest.mark.parametrize("settings", [{}, {"num_blocks": 12, "block_size": 4, "token_budget": 11}])
def test_drafters_leave_answers_as_they_are(
    drafter: str, settings: dict[str, Any], sampling: dict[str, Any]
) -> None:
    """Greedy or sampled, in a roomy pool and in one that preempts."""
    made: dict[str, Drafter] = {
        "itself": DraftModel(MODEL, MODEL, 3),
        "another": DraftModel(small_model(4), MODEL, 3),
        "lookup": PromptLookup(3),
    }
    engine = LLMEngine(MODEL, **{"num_blocks": 80, "speculation": made[drafter], **settings})
    requests = requests_of(**sampling)
    for one in requests:
        engine.add(one)
    heard = drain(engine)
    assert {id: one.tokens for id, one in heard.items()} == {
        one.id: alone(MODEL, one).tokens for one in requests
    }
    assert engine.stats.preemptions > 0 or not settings
    if drafter == "itself" and not sampling:
        assert engine.stats.accepted > 0.75 * engine.stats.drafted  # but those behind an end
    empty(engine)


def test_an_id_is_used_again_for_a_longer_request() -> None:
    drafter = DraftModel(small_model(4), MODEL, 3)
    engine = LLMEngine(MODEL, num_blocks=80, speculation=drafter)
    for length, new in ((2, 3), (30, 20), (3, 3)):
        one = request("again", prompt(length, length), new, ignore_eos=True)
        engine.add(one)
        assert drain(engine)["again"].tokens == alone(MODEL, one).tokens


def test_near_the_end_of_its_context_a_draft_model_guesses_nothing() -> None:
    draft = small_model(4, context=20)
    engine = LLMEngine(MODEL, num_blocks=80, speculation=DraftModel(draft, MODEL, 4))
    one = request("a", prompt(12), 30, ignore_eos=True)
    engine.add(one)
    assert drain(engine)["a"].tokens == alone(MODEL, one).tokens
    assert 0 < engine.stats.drafted <= 4 * 4


def test_drafters_that_cannot_guess_are_refused() -> None:
    for settings in ({"tokens": 0}, {"shortest": 0}, {"longest": 1, "shortest": 2}):
        with pytest.raises(ConfigError, match="cannot guess"):
            PromptLookup(**settings)
    with pytest.raises(ConfigError, match="at least 1"):
        DraftModel(MODEL, MODEL, 0)
    with pytest.raises(ConfigError, match="same vocabulary"):
        DraftModel(labcore.load("story"), MODEL)
