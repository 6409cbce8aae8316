"""Kinds that forget, each against what its paper says, written out over the full history."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import labcore
from labcore import cache as caches
from labcore.cache import HeavyHittersCache, NoCache, SinksCache, SlidingWindowCache
from labcore.config import ModelConfig
from labcore.errors import ConfigError, NotSupported
from labcore.kernels.rotary import inverse_frequencies, rotate_by
from labcore.model.transformer import Transformer

CONFIG = ModelConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    intermediate_size=48, vocab_size=50, max_position_embeddings=64,
)  # fmt: skip


@pytest.fixture(scope="module")
def transformer() -> Transformer:
    torch.manual_seed(0)
    return Transformer(CONFIG).requires_grad_(False)


class Papers(NoCache):
    """One sequence, all keys at hand: query p attends to `sinks` first and `window` newest positions.

    As StreamingLLM states it: kept keys and the query are given the positions 0, 1, 2, … that they have
    within the cache. No sinks: the sliding window.
    """

    sinks, window = 0, 1

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        frequencies = inverse_frequencies(CONFIG)
        group = q.shape[1] // k.shape[1]
        rows = []
        for p in range(q.shape[2]):
            kept = [t for t in range(p + 1) if t < self.sinks or t > p - self.window]
            moved = torch.arange(len(kept)) - torch.tensor(kept)
            keys = rotate_by(k[:, :, kept], moved, frequencies).repeat_interleave(group, 1)
            query = rotate_by(q[:, :, p : p + 1], moved[-1:], frequencies)
            weights = (query @ keys.mT / math.sqrt(CONFIG.head_dim)).softmax(-1)
            rows.append(weights @ v[:, :, kept].repeat_interleave(group, 1))
        return torch.cat(rows, dim=2)


def by_the_paper(transformer: Transformer, tokens: Tensor, sinks: int, window: int) -> Tensor:
    rows = []
    for row in tokens:
        cache = Papers(CONFIG, 1, 64, torch.device("cpu"), torch.float32)
        cache.sinks, cache.window = sinks, window
        rows.append(transformer(row[None], cache)[:, -1])
    return torch.cat(rows)


KINDS = {0: "sliding_window:window={w}", 1: "sinks:sinks=1,window={w}", 4: "sinks:sinks=4,window={w}"}


@pytest.mark.parametrize("sinks", KINDS)
@settings(max_examples=30, deadline=None)
@given(
    chunks=st.lists(st.sampled_from([1, 1, 1, 2, 5, 11]), min_size=1, max_size=9),
    window=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_any_chunking_is_what_the_paper_says(
    transformer: Transformer, sinks: int, chunks: list[int], window: int, seed: int
) -> None:
    torch.manual_seed(seed)
    tokens = torch.randint(0, 50, (2, sum(chunks)))
    cache = caches.create(KINDS[sinks].format(w=window), CONFIG, batch_size=2)
    for end in torch.tensor(chunks).cumsum(0).tolist():
        out = transformer(tokens[:, cache.length : end], cache)
    expected = by_the_paper(transformer, tokens, sinks, window)
    torch.testing.assert_close(out[:, -1], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sinks", KINDS)
@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 15), min_size=2, max_size=3), new=st.integers(1, 12))
def test_padded_rows_are_what_each_is_alone(
    transformer: Transformer, sinks: int, lengths: list[int], new: int
) -> None:
    torch.manual_seed(3)
    longest = max(lengths)
    rows = [torch.randint(0, 50, (length + new,)) for length in lengths]
    padding = torch.tensor([longest - length for length in lengths])
    tokens = torch.stack([torch.nn.functional.pad(row, (longest + new - len(row), 0)) for row in rows])
    cache = caches.create(KINDS[sinks].format(w=5), CONFIG, batch_size=len(rows), padding=padding)
    transformer(tokens[:, :longest], cache)
    for end in range(longest + 1, longest + new + 1):
        out = transformer(tokens[:, cache.length : end], cache)
    alone = torch.cat([by_the_paper(transformer, row[None], sinks, 5) for row in rows])
    torch.testing.assert_close(out[:, -1], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sinks", KINDS)
@settings(max_examples=20, deadline=None)
@given(held=st.integers(1, 20), lost=st.integers(1, 6), back=st.integers(0, 3))
def test_an_interrupted_step_and_a_step_back_lose_nothing(
    transformer: Transformer, sinks: int, held: int, lost: int, back: int
) -> None:
    torch.manual_seed(held)
    tokens = torch.randint(0, 50, (1, held + 1))
    cache = caches.create(KINDS[sinks].format(w=6), CONFIG)
    transformer(tokens[:, :held], cache)

    def stop(*_: object) -> None:
        raise RuntimeError("stop")

    hook = transformer.layers[1].register_forward_pre_hook(stop)
    fast, transformer.fast = transformer.fast, False
    try:
        with pytest.raises(RuntimeError):
            transformer(torch.randint(0, 50, (1, lost)), cache)
    finally:
        hook.remove()
        transformer.fast = fast
    goal = max(0, held - back)
    try:
        cache.truncate(goal)
    except NotSupported:
        goal = cache.length
    out = transformer(tokens[:, goal : held + 1], cache)
    expected = by_the_paper(transformer, tokens, sinks, 6)
    torch.testing.assert_close(out[:, -1], expected, atol=1e-4, rtol=1e-4)


def test_text_goes_on_past_the_trained_length() -> None:
    torch.manual_seed(0)
    model = labcore.load("story", device="cpu", dtype="float32")
    prompt = "Once upon a time"
    out = labcore.generate(model, prompt, max_new_tokens=1200, ignore_eos=True, cache="sinks:window=60")
    assert len(out.tokens) == 1200 > model.config.max_position_embeddings
    with_all = labcore.generate(model, prompt, max_new_tokens=1200, ignore_eos=True)
    assert len(with_all.tokens) < model.config.max_position_embeddings


@settings(max_examples=30, deadline=None)
@given(
    chunks=st.lists(st.sampled_from([1, 1, 1, 3, 8]), min_size=1, max_size=8),
    budget=st.integers(2, 12) | st.floats(0.05, 0.2),
    recent=st.sampled_from([0.25, 0.5, 1.0]),
    pad=st.integers(0, 4),
)
def test_heavy_hitters_keep_the_newest_and_the_heaviest(
    transformer: Transformer, chunks: list[int], budget: int | float, recent: float, pad: int
) -> None:
    torch.manual_seed(5)
    padding = torch.tensor([0, min(pad, chunks[0] - 1)])
    cache = HeavyHittersCache(
        CONFIG, 2, 64, torch.device("cpu"), torch.float32, padding, budget=budget, recent=recent
    )
    for size in chunks:
        before = [(held.slots.clone(), held.sums.clone()) for held in cache.held]
        transformer(torch.randint(0, 50, (2, size)), cache)
        for held, (slots, sums) in zip(cache.held, before, strict=True):
            _check_row(cache, held, slots, sums, padding, single=size == 1)


def _check_row(
    cache: HeavyHittersCache,
    held: tuple[Tensor, ...],
    slots: Tensor,
    sums: Tensor,
    padding: Tensor,
    single: bool,
) -> None:
    for row in range(2):
        for head in range(CONFIG.num_key_value_heads):
            kept = {slot for slot in held[2][row, head].tolist() if slot >= 0}
            real = cache.length - int(padding[row])
            assert len(kept) == min(int(cache.budgets[row]), real), "budget used, and no more"
            newest = range(max(int(padding[row]), cache.length - int(cache.recents[row])), cache.length)
            assert kept.issuperset(newest)
            assert min(kept) >= padding[row]
            if single:
                gone = {slot for slot in slots[row, head].tolist() if slot >= 0} - kept
                assert len(gone) <= 1, "one goes for each that comes"


def test_heavy_hitters_drop_the_least_attended(transformer: Transformer) -> None:
    """Sums and victims, recomputed from the attention that an observer sees."""
    torch.manual_seed(6)
    cache = caches.create("heavy_hitters:budget=6", CONFIG)
    assert isinstance(cache, HeavyHittersCache)
    sums: dict[tuple[int, int], float] = {}

    def watch(layer: int, compute: Callable[[], Tensor], slots: Tensor | None) -> None:
        if layer:
            return
        assert slots is not None
        per_head = compute()[0].unflatten(0, (CONFIG.num_key_value_heads, -1)).sum((1, 2))
        for head in range(CONFIG.num_key_value_heads):
            for slot, weight in zip(slots[0, head].tolist(), per_head[head].tolist(), strict=True):
                if slot >= 0:
                    sums[head, slot] = sums.get((head, slot), 0.0) + weight

    cache.observer = watch
    for size in (8, 1, 1, 1, 1, 1, 1, 1):
        before = [set(row) for row in slots_now(cache, size)]
        transformer(torch.randint(0, 50, (1, size)), cache)
        for head, was in enumerate(before):
            kept = {slot for slot in cache.held[0].slots[0, head].tolist() if slot >= 0}
            could_go = {slot for slot in was if 0 <= slot < cache.length - int(cache.recents[0])}
            stayed, gone = could_go & kept, could_go - kept
            if stayed and gone:
                assert min(sums[head, s] for s in stayed) >= max(sums[head, s] for s in gone) - 1e-4


def slots_now(cache: HeavyHittersCache, new: int) -> list[list[int]]:
    """Positions of layer 0 by KV head, in the order of the keys that the step attends to."""
    rows = []
    for held in cache.held[0].slots[0].tolist():
        if new == 1:
            held[held.index(-1)] = cache.length
            rows.append(held)
        else:
            rows.append(held + list(range(cache.length, cache.length + new)))
    return rows


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("sliding_window", "attends to all its 64 positions and states no sliding window"),
        ("sliding_window:window=0", "A window of 0 positions"),
        ("sinks:budget=4", "A budget of 4 positions cannot hold 4 sinks and a window of at least 1"),
        ("sinks:sinks=-1,window=4", "-1 sinks"),
        ("sinks", "needs a window"),
        ("sinks:sinks=2,window=4,budget=9", "A budget of 9 positions is not 2 sinks and a window of 4"),
        ("heavy_hitters:budget=1", "is 1 of 64 positions; heavy hitters need at least 2"),
        ("heavy_hitters:budget=1.5", "a share of the capacity above 0 and up to 1.0"),
        ("heavy_hitters:recent=0", "recent is 0"),
    ],
)
def test_settings_that_mean_nothing(spec: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        caches.create(spec, CONFIG)


def test_going_back_is_refused_where_it_cannot_be_done(transformer: Transformer) -> None:
    for spec, sentence in {
        "sliding_window:window=4": "from 9 to 5 positions: its window of 4 has overwritten those before 5",
        "heavy_hitters:budget=4": "from 9 to 5 positions: what it dropped",
    }.items():
        cache = caches.create(spec, CONFIG)
        transformer(torch.randint(0, 50, (1, 9)), cache)
        with pytest.raises(NotSupported, match=sentence):
            cache.truncate(5)
        assert cache.length == 9
        cache.reset()
        assert cache.length == 0


@pytest.mark.parametrize("spec", ["sliding_window:window=7", "sinks:window=7", "heavy_hitters:budget=7"])
def test_nbytes_is_what_its_tensors_hold(transformer: Transformer, spec: str) -> None:
    cache = caches.create(spec, CONFIG, batch_size=2, capacity=50)
    before = cache.nbytes
    transformer(torch.randint(0, 50, (2, 20)), cache)
    position = (
        2 * CONFIG.num_key_value_heads * CONFIG.head_dim * 4 * CONFIG.num_hidden_layers * 2
    )  # both rows
    extra = {
        SlidingWindowCache: 0,
        SinksCache: 4 * position + 4 * position // 2,  # the sinks, and their keys once more, unturned
        HeavyHittersCache: position + 8 * CONFIG.num_key_value_heads * CONFIG.num_hidden_layers * 2 * (8 + 4),
    }[type(cache)]
    assert cache.nbytes == before == 7 * position + extra
    assert cache.kept == (11 if "sinks" in spec else 7)
    assert cache.length == 20
