"""Golden values, then properties that hold for any logits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from labcore.errors import SamplingError
from labcore.generation import sampling
from labcore.generation.sampling import COLD, Points, Sampler, SamplingParams, draw, process_logits

THREE = torch.tensor([[2.0, 1.0, 0.0]])
logits_rows = st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=20).map(
    lambda row: torch.tensor([row])
)


@pytest.mark.parametrize(
    ("temperature", "expected"), [(1.0, [0.665, 0.245, 0.090]), (0.5, [0.867, 0.117, 0.016])]
)
def test_temperature_golden(temperature: float, expected: list[float]) -> None:
    probabilities = process_logits(THREE, SamplingParams(temperature=temperature)).softmax(-1)[0]
    assert [round(float(p), 3) for p in probabilities] == expected


def test_top_p_golden() -> None:
    kept = process_logits(THREE, SamplingParams(temperature=1.0, top_p=0.9)).isfinite()
    assert kept.tolist() == [[True, True, False]]


def test_temperature_comes_before_top_p() -> None:
    """At T=0.5 the best token alone holds 0.867, so top-p 0.8 keeps one; at T=1 it would keep two."""
    hot = process_logits(THREE, SamplingParams(temperature=1.0, top_p=0.8)).isfinite().sum()
    cold = process_logits(THREE, SamplingParams(temperature=0.5, top_p=0.8)).isfinite().sum()
    assert (int(hot), int(cold)) == (2, 1)


@given(row=logits_rows, k=st.integers(1, 25))
def test_top_k_keeps_exactly_k_of_the_best(row: torch.Tensor, k: int) -> None:
    kept = process_logits(row, SamplingParams(temperature=1.0, top_k=k)).isfinite()
    assert int(kept.sum()) == min(k, row.shape[1])
    if (~kept).any():
        assert row[kept].min() >= row[~kept].max()


@given(row=logits_rows, p=st.floats(0.01, 0.999))
def test_top_p_keeps_the_smallest_set_that_reaches_p(row: torch.Tensor, p: float) -> None:
    probabilities = row.softmax(-1)
    kept = process_logits(row, SamplingParams(temperature=1.0, top_p=p)).isfinite()
    total = float(probabilities[kept].sum())
    assume(abs(total - p) > 1e-5)
    assert total >= p
    assert total - float(probabilities[kept].min()) < p + 1e-6


@given(row=logits_rows, min_p=st.floats(0.01, 0.99))
def test_min_p_is_relative_to_the_best(row: torch.Tensor, min_p: float) -> None:
    probabilities = row.softmax(-1)
    ratio = probabilities / probabilities.max()
    assume(float((ratio - min_p).abs().min()) > 1e-5)
    kept = process_logits(row, SamplingParams(temperature=1.0, min_p=min_p)).isfinite()
    assert kept.tolist() == (ratio > min_p).tolist()


def test_repetition_penalty_weakens_both_signs_and_skips_padding() -> None:
    history = torch.tensor([[-1, 0, 1]])
    out = process_logits(torch.tensor([[2.0, -2.0, 1.0]]), SamplingParams(repetition_penalty=2.0), history)
    assert out.tolist() == [[1.0, -4.0, 1.0]]


@given(row=logits_rows, point=st.floats(0, 1, exclude_max=True, width=32), k=st.integers(1, 5))
def test_draw_never_takes_a_cut_token(row: torch.Tensor, point: float, k: int) -> None:
    cut = process_logits(row, SamplingParams(temperature=1.0, top_k=k))
    token = draw(cut, torch.tensor([point]))
    assert cut[0, token].isfinite()
    assert cut.softmax(-1)[0, token] > 0


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-40, 1e-300])
def test_a_temperature_that_logits_overflow_at_is_greedy(temperature: float) -> None:
    """Divided by it they are infinite, and a share of infinity is no number."""
    rows = torch.tensor([[1.0, 90.0, 89.0], [-90.0, -89.0, -1e4]])
    assert Sampler(SamplingParams(temperature=temperature), 2)(rows).tolist() == [1, 1]


@pytest.mark.parametrize("settings", [{"top_p": 1e-300}, {"top_p": 1e-45}, {"min_p": 1.0}, {"top_k": 1}])
def test_the_strictest_cuts_leave_the_best_token(settings: dict[str, Any]) -> None:
    kept = process_logits(THREE, SamplingParams(**{"temperature": 1.0, **settings})).isfinite()
    assert kept.tolist() == [[True, False, False]]


def test_the_largest_penalties_stay_finite() -> None:
    for penalty in (1e-6, 1e6):
        params = SamplingParams(temperature=COLD, repetition_penalty=penalty)
        found = process_logits(THREE * 1e3, params, torch.tensor([[0, 1, 2]]))
        assert found.isfinite().all()


def test_draw_edges() -> None:
    row = torch.tensor([[-math.inf, 0.0, 0.0, -math.inf]])
    assert draw(row, torch.tensor([0.0])).tolist() == [1]
    assert draw(row, torch.tensor([0.5])).tolist() == [2]
    assert draw(row, torch.tensor([1.0])).tolist() == [2]


def test_draws_follow_the_distribution() -> None:
    count = 20_000
    points = torch.rand(count, generator=torch.Generator().manual_seed(0))
    tokens = draw(THREE.expand(count, 3), points)
    shares = torch.bincount(tokens, minlength=3) / count
    # three standard deviations of a share are at most 3 * sqrt(0.25 / count) = 0.0106
    torch.testing.assert_close(shares, THREE.softmax(-1)[0], atol=0.0107, rtol=0)


def test_rows_have_their_own_streams() -> None:
    flat = torch.zeros(2, 1000)
    pair = Sampler(SamplingParams(temperature=1.0, seed=7), 2)(flat)
    alone = Sampler(SamplingParams(temperature=1.0, seed=8), 1)(flat[:1])
    assert pair[1] == alone[0]
    assert pair[0] != pair[1]


def test_random_numbers_belong_to_tokens() -> None:
    """However many are looked at in a step, and where a step is taken again."""
    one_by_one = Points(3)
    expected = torch.cat([one_by_one.of(token) for token in range(40)])
    points = Points(3)
    for first, count in ((0, 1), (1, 17), (1, 17), (4, 1), (5, 20), (25, 0), (30, 10)):
        assert torch.equal(points.of(first, count), expected[first : first + count])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf), ("temperature", "hot"),
        ("top_k", -1), ("top_k", 2.5), ("top_p", 0.0), ("top_p", 1.1), ("min_p", -0.1), ("min_p", 2.0),
        ("repetition_penalty", 0.0), ("repetition_penalty", 1e300),
        ("seed", -1), ("seed", 2**63), ("top_k", True),
    ],
)  # fmt: skip
def test_impossible_values_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(SamplingError, match=rf"^{name} is .*; it must be .*\.$"):
        SamplingParams(**{name: value})  # type: ignore[arg-type]


def test_the_best_of_parts_is_the_best() -> None:
    """As on a GPU; of tokens that tie the first, as argmax takes."""
    logits = torch.randn(5, 3 * sampling.PARTS)
    logits[1, 7] = logits[1, 200] = logits[1, 300] = 9.0
    logits[2, -1], logits[3, 0] = 9.0, 9.0
    assert torch.equal(sampling._best_of_parts(logits)[1], logits.argmax(-1))
    assert torch.equal(sampling.best(logits), logits.argmax(-1))
