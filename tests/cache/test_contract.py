"""One suite that every kind of cache passes: the same attention as no cache at all, over random histories."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labcore import cache as caches
from labcore.config import ModelConfig
from labcore.errors import CacheFull, ConfigError, NotSupported, OutOfMemory
from labcore.model.transformer import Transformer
from labcore.perf import costs
from tests.caches import EXACT

CONFIG = ModelConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    intermediate_size=48, vocab_size=50, max_position_embeddings=64,
)  # fmt: skip
KEEPING = [spec for kind, spec in EXACT.items() if kind != "none"]


def test_every_kind_is_held_to_the_suite() -> None:
    """quantized, which is never exact, has its own reference in test_quantized.py."""
    assert {*EXACT, "quantized"} == set(caches.KINDS)


@pytest.fixture(scope="module")
def transformer() -> Transformer:
    torch.manual_seed(0)
    return Transformer(CONFIG).requires_grad_(False)


def full(transformer: Transformer, tokens: torch.Tensor, padding: torch.Tensor | None = None) -> torch.Tensor:
    cache = caches.create("none", CONFIG, batch_size=len(tokens), padding=padding)
    return transformer(tokens, cache)


@pytest.mark.parametrize("kind", EXACT.values())
@settings(max_examples=25)
@given(
    chunks=st.lists(st.integers(1, 7), min_size=1, max_size=8),
    batch=st.integers(1, 3),
    seed=st.integers(0, 50),
)
def test_any_chunking_gives_the_logits_of_one_pass(
    transformer: Transformer, kind: str, chunks: list[int], batch: int, seed: int
) -> None:
    torch.manual_seed(seed)
    tokens = torch.randint(0, 50, (batch, sum(chunks)))
    cache = caches.create(kind, CONFIG, batch_size=batch)
    fed = 0
    for size in chunks:
        fed += size
        out = transformer(tokens[:, cache.length : fed], cache)
        assert cache.length == (0 if kind == "none" else fed)
    torch.testing.assert_close(out[:, -1], full(transformer, tokens)[:, -1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KEEPING)
@settings(max_examples=25)
@given(
    history=st.lists(
        st.tuples(st.sampled_from(["feed", "truncate", "reset", "select", "fork"]), st.integers(1, 9)),
        max_size=10,
    )
)
def test_random_histories(transformer: Transformer, kind: str, history: list[tuple[str, int]]) -> None:
    """Whatever was done before, the cache continues as if it had only ever seen what it still holds."""
    torch.manual_seed(1)
    cache = caches.create(kind, CONFIG, batch_size=2, capacity=64)
    known = torch.empty(2, 0, dtype=torch.int64)
    for verb, n in history:
        if verb == "feed" and cache.length + n <= 55:
            new = torch.randint(0, 50, (known.shape[0], n))
            transformer(new, cache)
            known = torch.cat([known, new], 1)
        elif verb == "truncate":
            try:
                cache.truncate(min(n, cache.length))
            except NotSupported:
                continue
            known = known[:, : min(n, cache.length)]
        elif verb == "reset":
            cache.reset()
            known = known[:, :0]
        elif verb == "select":
            rows = torch.randint(0, known.shape[0], (1 + n % 3,))
            cache.select(rows)
            known = known[rows]
        elif verb == "fork":
            other = cache.fork()
            transformer(torch.randint(0, 50, (known.shape[0], min(n, 4))), cache)  # must not reach the fork
            cache = other
        assert cache.length == known.shape[1]
    probe = torch.randint(0, 50, (known.shape[0], 1))
    expected = full(transformer, torch.cat([known, probe], 1))[:, -1]
    torch.testing.assert_close(transformer(probe, cache)[:, -1], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", EXACT.values())
@settings(max_examples=20)
@given(lengths=st.lists(st.integers(1, 9), min_size=2, max_size=4), new=st.integers(1, 4))
def test_padded_batch_equals_each_alone(
    transformer: Transformer, kind: str, lengths: list[int], new: int
) -> None:
    torch.manual_seed(2)
    longest = max(lengths)
    rows = [torch.randint(0, 50, (1, length + new)) for length in lengths]
    padding = torch.tensor([longest - length for length in lengths])
    tokens = torch.cat([torch.nn.functional.pad(row, (longest + new - row.shape[1], 0)) for row in rows])
    cache = caches.create(kind, CONFIG, batch_size=len(lengths), padding=padding)
    transformer(tokens[:, :longest], cache)
    for end in range(longest + 1, longest + new + 1):
        out = transformer(tokens[:, cache.length : end], cache)
    alone = torch.cat([full(transformer, row)[:, -1] for row in rows])
    torch.testing.assert_close(out[:, -1], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["growing", "contiguous"])
def test_nbytes_is_the_formula(transformer: Transformer, kind: str) -> None:
    cache = caches.create(kind, CONFIG, batch_size=3, capacity=20)
    transformer(torch.zeros(3, 7, dtype=torch.int64), cache)
    positions = cache.capacity or cache.length
    assert cache.nbytes == 3 * positions * costs.kv_bytes_per_token(CONFIG, "float32")


def test_growing_counts_its_copies(transformer: Transformer) -> None:
    cache = caches.create("growing", CONFIG)
    for _ in range(5):
        transformer(torch.zeros(1, 1, dtype=torch.int64), cache)
    # steps 2 to 5 copy 1, 2, 3 and 4 positions
    assert cache.copied_bytes == 10 * costs.kv_bytes_per_token(CONFIG, "float32")


def test_full_cache_says_so_and_stays_as_it_was(transformer: Transformer) -> None:
    cache = caches.create("contiguous", CONFIG, capacity=4)
    tokens = torch.tensor([[1, 2, 3, 4]])
    transformer(tokens[:, :3], cache)
    with pytest.raises(CacheFull, match="holds 3 of 4 positions and cannot take 2 more; .* at least 5"):
        transformer(tokens[:, :2], cache)
    out = transformer(tokens[:, 3:], cache)
    torch.testing.assert_close(out[:, -1], full(transformer, tokens)[:, -1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KEEPING)
def test_interrupted_step_leaves_nothing(transformer: Transformer, kind: str) -> None:
    cache = caches.create(kind, CONFIG)
    tokens = torch.tensor([[5, 6, 7, 8]])
    transformer(tokens[:, :2], cache)

    def stop(*_: object) -> None:
        raise RuntimeError("stop")

    hook = transformer.layers[1].register_forward_pre_hook(stop)
    transformer.fast = False  # the C kernels call no layer that could be stopped
    try:
        with pytest.raises(RuntimeError):
            transformer(tokens[:, :2], cache)
    finally:
        transformer.fast = True
        hook.remove()
    out = transformer(tokens[:, 2:], cache)
    torch.testing.assert_close(out[:, -1], full(transformer, tokens)[:, -1], atol=1e-4, rtol=1e-4)


def test_truncate_refuses_more_than_is_held() -> None:
    with pytest.raises(ValueError, match="holds 0"):
        caches.create("growing", CONFIG).truncate(1)


def test_unknown_kind_names_the_kinds() -> None:
    with pytest.raises(ConfigError, match=r"contiguuous.*none, growing, contiguous.*int8.*mean 'contiguous'"):
        caches.create("contiguuous", CONFIG)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("contiguous:window=3", "has no setting 'window'; it has none"),
        ("sinks:windoww=3", "has no setting 'windoww'; it has sinks, window, budget"),
        ("sliding_window:window", "has the setting 'window'; write kind:setting=value"),
    ],
)
def test_wrong_settings_are_named(wrong: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        caches.create(wrong, CONFIG)


@pytest.mark.parametrize("text", ["contiguous", "sinks:sinks=4,window=60", "int8", "kivi2", "int4:group=16"])
def test_a_spec_reads_back_as_it_is_written(text: str) -> None:
    assert caches.CacheSpec.parse(text).label == text
    assert caches.CacheSpec.parse(caches.CacheSpec.parse(text).label) == caches.CacheSpec.parse(text)


def test_too_big_is_refused_before_allocation() -> None:
    with pytest.raises(
        OutOfMemory, match=r"needs .* GB and .* GB are free on cpu; ask for at most \d+ positions"
    ):
        caches.create("contiguous", CONFIG, capacity=10**12)
