"""Beam search against exhaustive search and against greedy decoding."""

from __future__ import annotations

import itertools

import pytest
import torch

import labcore
from labcore.errors import SamplingError
from labcore.model import Model


def log_likelihood(model: Model, prompt: list[int], tokens: list[int]) -> float:
    logprobs = labcore.logits(model, prompt + tokens)[0].log_softmax(-1)
    return sum(float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(tokens))


def test_score_is_the_mean_log_probability(model: Model) -> None:
    out = labcore.generate(model, [1, 2, 3], num_beams=3, max_new_tokens=6)
    assert out.score == pytest.approx(
        log_likelihood(model, [1, 2, 3], out.tokens) / len(out.tokens), abs=1e-4
    )


def test_a_wide_beam_finds_the_best_answer(model: Model) -> None:
    """16 beams over two steps: compared with every one of the 32 x 32 answers."""
    out = labcore.generate(model, [4, 5], num_beams=16, max_new_tokens=2, ignore_eos=True)
    every = itertools.product(range(model.config.vocab_size), repeat=2)
    best = max(every, key=lambda pair: log_likelihood_cached(model, pair))
    assert out.tokens == list(best)


def log_likelihood_cached(model: Model, pair: tuple[int, ...]) -> float:
    first, second = _tables(model)
    return float(first[pair[0]] + second[pair[0], pair[1]])


def _tables(model: Model) -> tuple[torch.Tensor, torch.Tensor]:
    vocab = model.config.vocab_size
    rows = labcore.logits(model, [[4, 5, token] for token in range(vocab)]).log_softmax(-1)
    return rows[0, 1], rows[:, 2]


@pytest.mark.parametrize("kind", ["none", "growing", "contiguous"])
def test_every_cache_gives_the_same_beams(model: Model, kind: str) -> None:
    out = labcore.generate(model, "hello", num_beams=4, max_new_tokens=10, cache=kind)
    assert out.tokens == labcore.generate(model, "hello", num_beams=4, max_new_tokens=10).tokens


def test_a_batch_is_each_alone(model: Model) -> None:
    outs = labcore.generate(model, ["hello", "a b"], num_beams=2, max_new_tokens=5)
    assert [out.tokens for out in outs] == [
        labcore.generate(model, prompt, num_beams=2, max_new_tokens=5).tokens for prompt in ("hello", "a b")
    ]


def test_what_beams_do_not_take(model: Model) -> None:
    with pytest.raises(SamplingError, match="num_beams=1"):
        labcore.generate(model, "hello", num_beams=2, temperature=1.0)
    with pytest.raises(SamplingError, match="vocabulary of 32 allows at most 16"):
        labcore.generate(model, "hello", num_beams=17)
