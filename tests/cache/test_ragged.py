"""Every kind of cache, and sequences of unlike lengths: each one's answer is the one that it has alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import labcore
from labcore import cache as caches
from labcore.cache import HeavyHittersCache
from tests.caches import EXACT, LOSSY
from tests.serving.helpers import CONTEXT, prompt, small_model

MODEL = small_model(eos=False)


def test_every_kind_is_held_to_it() -> None:
    assert {caches.CacheSpec.parse(spec).kind for spec in [*EXACT.values(), *LOSSY]} == set(caches.KINDS)


@pytest.mark.parametrize("cache", [*EXACT.values(), *LOSSY])
@settings(max_examples=5, deadline=None)
@given(
    lengths=st.lists(st.integers(4, 30) | st.just(CONTEXT - 3), min_size=2, max_size=3),
    new=st.integers(1, 12),
    temperature=st.sampled_from([0.0, 0.9]),
)
def test_an_answer_is_the_one_alone(cache: str, lengths: list[int], new: int, temperature: float) -> None:
    """Also where one of them is at the end of the model's context and the others are not."""
    prompts = [list(prompt(length, seed)) for seed, length in enumerate(lengths)]
    how = {"max_new_tokens": new, "cache": cache, "temperature": temperature}
    together = labcore.generate(MODEL, prompts, **how, seed=5)
    for row, one in enumerate(prompts):
        alone = labcore.generate(MODEL, one, **how, seed=5 + row)
        assert together[row].tokens == alone.tokens
        assert together[row].finish_reason == alone.finish_reason


def test_a_share_is_of_a_sequences_own_capacity() -> None:
    padding = torch.tensor([0, 10, 25])
    cache = caches.create(
        "heavy_hitters:budget=0.5", MODEL.config, batch_size=3, capacity=40, padding=padding
    )
    assert isinstance(cache, HeavyHittersCache)
    assert cache.budgets.tolist() == [20, 15, 8]
    assert cache.recents.tolist() == [10, 8, 4]
    cache.select(torch.tensor([2, 0]))
    assert cache.budgets.tolist() == [8, 20]
