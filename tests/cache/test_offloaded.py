"""The offloaded cache's bytes and copies; its attention is in the shared suite."""

from __future__ import annotations

import pytest
import torch

from labcore import cache as caches
from labcore.config import ModelConfig
from labcore.model.transformer import Transformer
from labcore.perf import costs

CONFIG = ModelConfig(
    hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    intermediate_size=48, vocab_size=50, max_position_embeddings=64,
)  # fmt: skip
TOKEN = costs.kv_bytes_per_token(CONFIG, "float32")


@pytest.mark.parametrize("prefetch", [True, False])
def test_the_device_holds_two_layers_at_most(prefetch: bool) -> None:
    cache = caches.create("offloaded", CONFIG, capacity=20, prefetch=prefetch)
    assert cache.host_nbytes == 20 * TOKEN
    assert cache.nbytes == 20 * TOKEN * (2 if prefetch else 1) // 4


def test_every_step_copies_the_past_once() -> None:
    torch.manual_seed(0)
    model = Transformer(CONFIG).requires_grad_(False)
    cache = caches.create("offloaded", CONFIG, capacity=20)
    model(torch.randint(0, 50, (1, 5)), cache)
    assert cache.copied_bytes == 5 * TOKEN, "a first prompt is written and nothing fetched"
    model(torch.randint(0, 50, (1, 1)), cache)
    assert cache.copied_bytes == (5 + 5 + 1) * TOKEN


@pytest.mark.gpu
@pytest.mark.parametrize("prefetch", [True, False])
def test_on_a_gpu_it_is_the_contiguous_cache(prefetch: bool) -> None:
    torch.manual_seed(0)
    model = Transformer(CONFIG).requires_grad_(False).to("cuda")
    model.reset_rope()
    tokens = torch.randint(0, 50, (3, 40), device="cuda")
    settings = {"batch_size": 3, "capacity": 40, "device": "cuda"}
    cache = caches.create("offloaded", CONFIG, prefetch=prefetch, **settings)
    plain = caches.create("contiguous", CONFIG, **settings)
    for start, end in [(0, 11), *((at, at + 1) for at in range(11, 40))]:
        ours, theirs = (model(tokens[:, start:end], one)[:, -1] for one in (cache, plain))
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert all(tensor.is_pinned() for tensor in cache.host)
