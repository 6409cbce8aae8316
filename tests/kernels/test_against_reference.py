"""Every kernel against its plain twin, over random shapes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labcore import kernels
from labcore.config import ModelConfig
from labcore.kernels import reference
from labcore.model.rope import Rope

sizes = st.integers(1, 9)


def config(head_dim: int) -> ModelConfig:
    return ModelConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
        head_dim=head_dim, intermediate_size=8, vocab_size=8,
    )  # fmt: skip


@given(rows=sizes, width=sizes, seed=st.integers(0, 99))
def test_rms_norm(rows: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    x, weight = torch.randn(rows, width), torch.randn(width)
    torch.testing.assert_close(kernels.rms_norm(x, weight, 1e-6), reference.rms_norm(x, weight, 1e-6))


@given(n=sizes, heads=sizes, half=sizes, seed=st.integers(0, 99))
def test_rope(n: int, heads: int, half: int, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(2, heads, n, 2 * half)
    cos, sin = Rope(config(2 * half))(torch.randint(0, 500, (2, n)), torch.float32)
    torch.testing.assert_close(kernels.apply_rope(x, cos, sin), reference.apply_rope(x, cos, sin))


def test_rope_scores_depend_on_distance_only() -> None:
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)
    rope = Rope(config(16))

    def score(at_q: int, at_k: int) -> torch.Tensor:
        turned = [
            kernels.apply_rope(x, *rope(torch.tensor([[at]]), torch.float32))
            for x, at in ((q, at_q), (k, at_k))
        ]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score(9, 4), score(105, 100), atol=1e-5, rtol=1e-5)
    assert abs(score(9, 4) - score(9, 8)) > 1e-3


@given(rows=sizes, width=sizes, seed=st.integers(0, 99))
def test_swiglu(rows: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(rows, 2 * width)
    torch.testing.assert_close(kernels.swiglu(x), reference.swiglu(x))


@given(
    batch=st.integers(1, 3), kv_heads=st.integers(1, 3), group=st.integers(1, 4),
    n=st.integers(1, 6), past=st.integers(0, 6), masked=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_attention(batch: int, kv_heads: int, group: int, n: int, past: int, masked: bool, seed: int) -> None:
    torch.manual_seed(seed)
    total = n + past
    q = torch.randn(batch, kv_heads * group, n, 16)
    k, v = torch.randn(2, batch, kv_heads, total, 16).unbind()
    causal = past == 0 and not masked
    mask = None
    if not causal and (masked or n > 1):
        rows = batch if masked else 1
        mask = torch.rand(rows, 1, n, total) < 0.6
        mask[..., -1] = True
    expected = reference.attention(q, k, v, mask=mask, causal=causal)
    torch.testing.assert_close(
        kernels.attention(q, k, v, mask=mask, causal=causal), expected, atol=2e-5, rtol=2e-5
    )


@pytest.mark.parametrize("n", [1, 64])
def test_grouped_attention_never_repeats_keys(n: int) -> None:
    """The keys are 8 MB, the heads are shared by 16: a repeat would show as 128 MB."""
    q, k = torch.randn(1, 32, n, 64), torch.randn(1, 2, 16384, 64)
    mask = torch.ones(1, 1, n, 16384, dtype=torch.bool) if n > 1 else None
    with torch.profiler.profile(profile_memory=True) as profile:
        kernels.attention(q, k, k, mask=mask)
    largest = max(event.cpu_memory_usage for event in profile.events() if event.cpu_memory_usage)
    assert largest < k.nbytes * 2
