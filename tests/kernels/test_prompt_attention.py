"""The native attention of prompts against the plain one: any shape, any layout, and whoever watches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from labcore import kernels
from labcore.kernels import native, reference
from labcore.kernels.native.prompt_attention import prompt_attention, takes
from labcore.perf.counting import count

pytestmark = pytest.mark.skipif(not native.available(), reason=native.status())


def inputs(batch: int, kv: int, group: int, n: int, past: int, size: int, seed: int = 0) -> list[Tensor]:
    """q as the model cuts it out of one projection, k and v as a cache hands out part of its room."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, n, kv * group, size, generator=generator).transpose(1, 2)
    room = [torch.randn(batch, kv, past + n + 3, size, generator=generator) for _ in range(2)]
    return [q, *(part[:, :, : past + n] for part in room)]


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    n, keys = q.shape[2], k.shape[2]
    seen = torch.arange(keys) <= torch.arange(keys - n, keys)[:, None]
    return reference.attention(q, k, v, mask=seen[None, None])


@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 70), st.sampled_from([0, 1, 130]),
    st.sampled_from([1, 7, 16, 64, 100, 256]), st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_it_is_attention(batch: int, kv: int, group: int, n: int, past: int, size: int, seed: int) -> None:
    q, k, v = inputs(batch, kv, group, n, past, size, seed)
    torch.testing.assert_close(prompt_attention(q, k, v), plain(q, k, v), rtol=1e-4, atol=1e-5)


def test_long_prompts_and_scores_far_apart() -> None:
    q, k, v = inputs(1, 2, 2, 700, 0, 32)
    torch.testing.assert_close(prompt_attention(30 * q, k, v), plain(30 * q, k, v), rtol=1e-3, atol=1e-4)


def test_a_query_sees_nothing_that_comes_after_it() -> None:
    q, k, v = inputs(1, 1, 3, 40, 0, 64)
    before = prompt_attention(q, k, v)
    k[:, :, 25:], v[:, :, 25:] = 1e4, float("nan")
    assert torch.equal(prompt_attention(q, k, v)[:, :, :16], before[:, :, :16])


def test_whole_prompts_take_it_and_others_do_not() -> None:
    q, k, v = inputs(1, 2, 2, 32, 0, 64)
    assert takes(q, k, v)
    assert not takes(q[:, :, :4], k, v)
    assert not takes(q.half(), k.half(), v.half())
    assert not takes(q.clone().requires_grad_(), k, v)
    assert torch.equal(kernels.attention(q, k, v, causal=True), prompt_attention(q, k, v))


def test_whoever_counts_operators_is_given_operators() -> None:
    q, k, v = inputs(1, 2, 2, 32, 0, 64)
    assert count(lambda: kernels.attention(q, k, v, causal=True)).flops > 0


def test_a_profiler_sees_a_label() -> None:
    q, k, v = inputs(1, 2, 2, 32, 0, 64)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        prompt_attention(q, k, v)
    assert "labcore::attention_native" in {event.name for event in profiler.events()}
