"""Quantized caches against plain attention over what they read back; their size; what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from labcore import cache as caches
from labcore.cache import NoCache, QuantizedCache
from labcore.cache.quantized import rounded
from labcore.config import ModelConfig
from labcore.errors import ConfigError
from labcore.kernels import packing, reference
from labcore.model.transformer import Transformer
from labcore.perf import costs

CONFIG = ModelConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    intermediate_size=48, vocab_size=50, max_position_embeddings=96,
)  # fmt: skip
SPECS = [
    "int8", "int4", "int2", "fp8", "int4:group=8", "int8:residual=5",
    "kivi2:group=4", "kivi4:group=8", "kivi4:group=4,residual=8", "quantized:bits=8,scheme=kivi,group=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def transformer() -> Transformer:
    torch.manual_seed(0)
    return Transformer(CONFIG).requires_grad_(False)


def make(spec: str, **common: Any) -> QuantizedCache:
    cache = caches.create(spec, CONFIG, **common)
    assert isinstance(cache, QuantizedCache)
    return cache


@settings(max_examples=50, deadline=None)
@given(bits=st.sampled_from([8, 4, 2]), seed=st.integers(0, 99), scale=st.sampled_from([1e-3, 1.0, 300.0]))
def test_rounding_is_within_half_a_step(bits: int, seed: int, scale: float) -> None:
    torch.manual_seed(seed)
    x = torch.randn(3, 5, 16) * scale
    codes, step, low = packing.quantize(x, bits, -1)
    assert int(codes.max()) < 2**bits
    assert packing.unpack(packing.pack(codes, bits), bits).equal(codes)
    assert packing.pack(codes, bits).shape[-1] == 16 * bits // 8
    error = (packing.dequantize(codes, step, low, torch.float32) - x).abs()
    # Half a step, and what fp16 loses of scale and lowest value.
    assert (error <= 0.5 * step.float() + 2e-3 * x.abs().amax(-1, keepdim=True)).all()


class ReadBack(NoCache):
    """What a quantized cache should attend to, written out: every past key as it reads back, the step's own
    plain.

    steps: how many positions each step brought, for what is rounded depends on it.
    """

    like: QuantizedCache
    steps: tuple[int, ...]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts, start, done = [], 0, 0
        for size in self.steps:
            keys, values = k[:, :, : start + size].clone(), v[:, :, : start + size].clone()
            if done:
                keys[:, :, :done] = rounded(self.like, k[:, :, :done], keys=True)
                values[:, :, :done] = rounded(self.like, v[:, :, :done], keys=False)
            mask = torch.ones(size, start + size, dtype=torch.bool).tril(start)[None, None]
            parts.append(reference.attention(q[:, :, start : start + size], keys, values, mask=mask))
            start += size
            step = self.like._step
            done += max(0, start - self.like.residual - done) // step * step
        return torch.cat(parts, dim=2)


@pytest.mark.parametrize("spec", SPECS)
@settings(max_examples=15, deadline=None)
@given(steps=st.lists(st.sampled_from([1, 1, 1, 2, 7, 16]), min_size=1, max_size=8), batch=st.integers(1, 2))
def test_attention_is_over_what_reads_back(
    transformer: Transformer, spec: str, steps: list[int], batch: int
) -> None:
    torch.manual_seed(len(steps))
    tokens = torch.randint(0, 50, (batch, sum(steps)))
    cache = make(spec, batch_size=batch)
    out = [transformer(part, cache) for part in tokens.split(steps, dim=1)]
    expected = ReadBack(CONFIG, batch, 96, torch.device("cpu"), torch.float32)
    expected.like, expected.steps = cache, tuple(steps)
    torch.testing.assert_close(torch.cat(out, 1), transformer(tokens, expected), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("spec", SPECS)
def test_padded_rows_are_what_each_is_alone(transformer: Transformer, spec: str) -> None:
    """Step by step, after a step back too, and after the rows were selected anew."""
    torch.manual_seed(4)
    rows = [torch.randint(0, 50, (1, length)) for length in (19, 14)]
    together = make(spec, batch_size=2, padding=torch.tensor([0, 5]))
    tokens = torch.cat([rows[0], torch.nn.functional.pad(rows[1], (5, 0))])
    alone = [make(spec), make(spec)]
    transformer(tokens[:, :7], together)
    together.select(torch.tensor([1, 0]))
    for row, cache in enumerate(alone):
        transformer(rows[row][:, : 7 - 5 * row], cache)
    for end in (8, 9, 12, 13, 14, 19):
        if end == 13:
            together.truncate(10)
            alone[0].truncate(10)
            alone[1].truncate(5)
        out = transformer(tokens[[1, 0], together.length : end], together)
        for row, cache in enumerate(alone):
            last = transformer(rows[row][:, cache.length : end - 5 * row], cache)
            torch.testing.assert_close(out[1 - row, -1], last[0, -1], atol=1e-4, rtol=1e-4)


def test_groups_begin_at_a_sequences_first_token(transformer: Transformer) -> None:
    """Padding stretches no range, and the groups of a row are those that it has alone."""
    cache = make("kivi2:group=4,residual=0", batch_size=3, padding=torch.tensor([0, 3, 7]))
    k = torch.randn(3, 2, 11, 16)
    k[1, :, :3], k[2, :, :7] = 1e4, 1e4  # padding
    cache._new = 11
    for layer in range(2):
        cache._pending[layer] = (k, k)
    cache.commit()
    assert cache._rounded == {0: 8, 1: 12}
    alone = k[2, :, None, 7:11].transpose(0, 1)
    torch.testing.assert_close(cache._read(cache.keys[0], 12)[2:, :, 8:], rounded(cache, alone, keys=True))
    alone = k[:1, :, :8]
    torch.testing.assert_close(cache._read(cache.keys[0], 8)[:1], rounded(cache, alone, keys=True))


@pytest.mark.parametrize("spec", SPECS)
@settings(max_examples=10, deadline=None)
@given(
    history=st.lists(
        st.tuples(
            st.sampled_from(["feed", "feed", "truncate", "fork", "select", "abort"]), st.integers(1, 9)
        ),
        max_size=8,
    )
)
def test_random_histories(transformer: Transformer, spec: str, history: list[tuple[str, int]]) -> None:
    """A twin that is only ever fed and forked in step holds the same; nothing else disturbs the content."""
    torch.manual_seed(1)
    cache = make(spec, batch_size=2, capacity=90)
    for verb, n in history:
        before = [held(cache, layer) for layer in range(2)]
        if verb == "feed":
            transformer(torch.randint(0, 50, (cache.batch_size, n)), cache)
            continue
        if verb == "truncate":
            n = min(n, cache.length)
            cache.truncate(n)
            before = [part[:, :, :, :n] for part in before]
        elif verb == "fork":
            twin = cache.fork()
            transformer(torch.randint(0, 50, (cache.batch_size, 3)), cache)
            cache = twin
        elif verb == "select":
            rows = torch.randint(0, cache.batch_size, (1 + n % 3,))
            cache.select(rows)
            before = [part[:, rows] for part in before]
        else:
            cache.begin(n)
            cache.update(0, torch.randn(cache.batch_size, 2, n, 16), torch.randn(cache.batch_size, 2, n, 16))
        for layer, part in enumerate(before):
            torch.testing.assert_close(held(cache, layer), part, atol=1e-6, rtol=1e-6)


def held(cache: QuantizedCache, layer: int) -> Tensor:
    """(2, B, h_kv, length, d): everything a layer holds, read back."""
    (done,) = cache._rounded.values()
    waiting = cache.waiting[layer][:, :, :, : cache.length - done]
    sides = (cache.keys[layer], cache.values[layer])
    read = torch.stack([cache._read(side, done) for side in sides])
    return torch.cat([read, waiting], dim=3).clone()


@pytest.mark.parametrize("spec", SPECS)
def test_nbytes_is_formula_and_allocation(transformer: Transformer, spec: str) -> None:
    cache = make(spec, batch_size=3, capacity=32)
    before = cache.nbytes
    transformer(torch.randint(0, 50, (3, 21)), cache)
    numbers = costs.kv_bytes_per_token(CONFIG, "float32") // 4 * 3
    waiting = (cache.residual + cache._step - 1) * numbers * 4
    assert cache.nbytes == before == 32 * numbers * cache.bits_per_element / 8 + waiting
    tensors = [t for side in (*cache.keys, *cache.values) for t in side.values()] + cache.waiting
    assert cache.nbytes == sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def test_effective_bits() -> None:
    assert make("int4").bits_per_element == 4 + 32 / 16
    assert make("fp8").bits_per_element == 8 + 32 / 16


@pytest.mark.parametrize(("spec", "sentence"), [
    ("quantized:bits=3", "bits is 3"), ("quantized:scheme=row", "scheme is 'row'"),
    ("fp8:scheme=kivi", "scheme is 'kivi' at bits=fp8"), ("int4:group=5", "Groups of 5 do not divide the 16"),
    ("kivi2:group=8,residual=12", "residual is 12; it must be a multiple of 8"),
])  # fmt: skip
def test_settings_that_mean_nothing(spec: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        caches.create(spec, CONFIG)
