"""Paged and prefix caches: sharing, copy on write, full pools, hits. Attention is in the shared suite."""

from __future__ import annotations

import gc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import labcore
from labcore import cache as caches
from labcore.cache import BlockStore, PagedCache, PrefixStore
from labcore.config import ModelConfig
from labcore.errors import CacheFull, ConfigError, OutOfMemory
from labcore.generation import decode_step, prefill
from labcore.model import Model
from labcore.model.transformer import Transformer
from labcore.perf import costs

CONFIG = ModelConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    intermediate_size=48, vocab_size=50, max_position_embeddings=64,
)  # fmt: skip


@pytest.fixture(scope="module")
def transformer() -> Transformer:
    torch.manual_seed(0)
    return Transformer(CONFIG).requires_grad_(False)


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(1)
    return Model("tiny", CONFIG, Transformer(CONFIG).requires_grad_(False), None)


def paged(store: BlockStore | None = None, **settings: int) -> PagedCache:
    cache = caches.create("paged", CONFIG, pool=store, **settings)
    assert isinstance(cache, PagedCache)
    return cache


def full(transformer: Transformer, tokens: torch.Tensor) -> torch.Tensor:
    return transformer(tokens, caches.create("none", CONFIG, batch_size=len(tokens)))[:, -1]


def test_only_real_positions_take_blocks(transformer: Transformer) -> None:
    padding = torch.tensor([0, 7])
    cache = caches.create("paged:block_size=4", CONFIG, batch_size=2, padding=padding)
    assert isinstance(cache, PagedCache)
    transformer(torch.randint(0, 50, (2, 9)), cache)
    assert [len(row) for row in cache.rows] == [3, 1]
    assert cache.wasted == (12 - 9) + (4 - 2)
    filled = {info.block: info.filled for info in cache.block_map() if info.rows}
    assert sorted(filled.values()) == [1, 2, 4, 4]


def test_a_fork_shares_until_one_writes(transformer: Transformer) -> None:
    torch.manual_seed(2)
    tokens = torch.randint(0, 50, (1, 6))
    cache = paged(block_size=4)
    transformer(tokens, cache)
    pool = cache.store.pool
    twin = cache.fork()
    assert pool.num_used == 2, "nothing is copied"
    new = torch.tensor([[7]])
    ours = transformer(new, cache)[:, -1]
    assert pool.num_used == 3, "the block being written is copied, the full one is not"
    assert [info.refs for info in cache.block_map() if info.refs] == [2, 1, 1]
    theirs = transformer(torch.tensor([[9]]), twin)[:, -1]
    assert pool.num_used == 3, "who is left alone with a block writes in place"
    for out, last in ((ours, 7), (theirs, 9)):
        whole = torch.cat([tokens, torch.tensor([[last]])], 1)
        torch.testing.assert_close(out, full(transformer, whole), atol=1e-4, rtol=1e-4)


def test_a_full_pool_leaves_the_others_untouched(transformer: Transformer) -> None:
    torch.manual_seed(3)
    store = BlockStore(CONFIG, num_blocks=4, block_size=4)
    first, second = paged(store), paged(store)
    tokens = torch.randint(0, 50, (1, 11))
    transformer(tokens[:, :10], first)
    transformer(tokens[:, :3], second)
    with pytest.raises(CacheFull, match=r"0 of 4 blocks free and 1 more are needed"):
        transformer(tokens[:, 3:6], second)
    assert (second.length, store.pool.num_used) == (3, 4)
    out = transformer(tokens[:, 10:], first)[:, -1]
    torch.testing.assert_close(out, full(transformer, tokens), atol=1e-4, rtol=1e-4)
    first.close()
    out = transformer(tokens[:, 3:6], second)[:, -1]
    torch.testing.assert_close(out, full(transformer, tokens[:, :6]), atol=1e-4, rtol=1e-4)


def test_a_forgotten_cache_returns_its_blocks(transformer: Transformer) -> None:
    store = BlockStore(CONFIG, num_blocks=4, block_size=4)
    cache = paged(store)
    transformer(torch.randint(0, 50, (1, 9)), cache)
    twin = cache.fork()
    del cache
    gc.collect()
    assert store.pool.num_used == 3
    del twin
    gc.collect()
    assert store.pool.num_used == 0
    store.pool.check()


def test_an_interrupted_step_keeps_no_blocks(transformer: Transformer) -> None:
    cache = paged(block_size=4)
    transformer(torch.randint(0, 50, (1, 3)), cache)
    for _ in range(3):
        cache.begin(9)  # and never committed
        assert cache.store.pool.num_used == 3
    cache.truncate(3)
    assert cache.store.pool.num_used == 1


def test_nbytes_is_what_is_allocated(transformer: Transformer) -> None:
    cache = paged(block_size=4, num_blocks=6)
    position = costs.kv_bytes_per_token(CONFIG, "float32")
    transformer(torch.randint(0, 50, (1, 6)), cache)
    assert cache.nbytes == 6 * 4 * position + 2 * 4  # the pool, and a table of two int32
    store = BlockStore(CONFIG, num_blocks=50, block_size=4)
    assert store.nbytes == sum(t.untyped_storage().nbytes() for t in store.layers) == 200 * position
    shared = paged(store)
    transformer(torch.randint(0, 50, (1, 6)), shared)
    assert shared.nbytes == 2 * 4 * position + 2 * 4, "of a shared pool, what it holds"


@pytest.mark.parametrize(("spec", "sentence"), [
    ("paged:block_size=0", "block_size is 0"), ("paged:num_blocks=0", "num_blocks is 0"),
    ("prefix:block_size=-4", "block_size is -4"),
])  # fmt: skip
def test_sizes_that_mean_nothing(spec: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        caches.create(spec, CONFIG)


def test_too_many_blocks_are_refused_before_allocation() -> None:
    with pytest.raises(OutOfMemory, match=r"A pool of \d+ blocks needs .* GB .* ask for at most \d+ blocks"):
        caches.create("paged", CONFIG, num_blocks=10**12)


def greedy(model: Model, prompt: list[int], cache: object, new: int = 6) -> list[int]:
    return labcore.generate(model, prompt, max_new_tokens=new, ignore_eos=True, cache=cache).tokens


def test_a_hit_computes_only_the_rest(model: Model) -> None:
    store = PrefixStore(CONFIG, num_blocks=40, block_size=4)
    system, questions = list(range(13)), ([20, 21], [30], [])
    for question in questions:
        prompt = system + question
        assert greedy(model, prompt, store) == greedy(model, prompt, "contiguous")
    stats = store.tree.stats
    # 13 tokens: three full blocks; the second prompt finds them, the third must leave its last token out
    assert (stats.queries, stats.tokens_asked, stats.tokens_hit) == (3, 15 + 14 + 13, 0 + 12 + 12)
    out = labcore.generate(model, [*system, 30], max_new_tokens=2, ignore_eos=True, cache=store, trace=True)
    assert out.trace.prefill.input_shape == (1, 2)
    gc.collect()
    assert store.blocks.pool.num_used == len(store.tree)


def test_a_whole_hit_still_computes_the_last_token(model: Model) -> None:
    store = PrefixStore(CONFIG, num_blocks=40, block_size=4)
    prompt = list(range(8))
    first = greedy(model, prompt, store)
    out = labcore.generate(model, prompt, max_new_tokens=6, ignore_eos=True, cache=store, trace=True)
    assert out.tokens == first
    assert out.trace.prefill.input_shape == (1, 4)


def test_a_store_forgets_what_other_weights_computed() -> None:
    """Another model of the same shape, and the same one after its weights were changed or quantized."""
    ours, other = (Model(name, CONFIG, Transformer(CONFIG).requires_grad_(False), None) for name in "ab")
    store = PrefixStore(CONFIG, num_blocks=40, block_size=4)
    prompt = list(range(13))

    def agrees(model: Model) -> bool:
        return greedy(model, prompt, store) == greedy(model, prompt, "contiguous")

    assert agrees(ours)
    assert agrees(other)
    first, second = (labcore.stream(one, prompt, ignore_eos=True, cache=store) for one in (ours, other))
    next(first), next(second)
    first.close()  # after another began: what it computed may not come to stand among the other's
    assert agrees(other)
    other.transformer.embed_tokens.weight.mul_(-1)
    assert agrees(other)
    labcore.quantize(other, "int4:group=16")
    assert agrees(other)
    hits = store.tree.stats.tokens_hit
    assert agrees(other)
    assert store.tree.stats.tokens_hit == hits + 12, "the same weights find what they left"
    second.close()
    gc.collect()
    assert store.blocks.pool.num_used == len(store.tree)


def test_a_pool_of_another_shape_is_refused(model: Model) -> None:
    store = PrefixStore(CONFIG.with_(num_key_value_heads=4), num_blocks=40)
    with pytest.raises(ConfigError, match=r"4 query and 4 key/value heads.* the model has .*4 query and 2 "):
        greedy(model, [1, 2, 3], store)


@settings(max_examples=40, deadline=None)
@given(
    rounds=st.lists(
        st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=14), min_size=1, max_size=3),
        min_size=1, max_size=6,
    ),
    blocks=st.integers(19, 30),
)  # fmt: skip
def test_any_history_of_prompts_gives_the_contiguous_logits(
    model: Model, rounds: list[list[list[int]]], blocks: int
) -> None:
    """Hits, evictions, ragged batches: the same logits as without sharing."""
    store = PrefixStore(CONFIG, num_blocks=blocks, block_size=3)
    for prompts in rounds:
        longest = max(map(len, prompts))
        padding = torch.tensor([longest - len(prompt) for prompt in prompts])
        known = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        common = {"batch_size": len(prompts), "capacity": longest + 4, "padding": padding}
        ours, plain = caches.create(store, CONFIG, **common), caches.create("contiguous", CONFIG, **common)
        ours.adopt(known)
        logits = [prefill(model, known, cache) for cache in (ours, plain)]
        for _ in range(4):
            torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)
            known = torch.cat([known, logits[1].argmax(-1, keepdim=True)], 1)
            logits = [decode_step(model, known, cache) for cache in (ours, plain)]
        ours.release(known)
        del ours
        store.blocks.pool.check()
        assert store.blocks.pool.num_used == len(store.tree)


def test_the_pool_is_reclaimed_from_the_tree(model: Model) -> None:
    store = PrefixStore(CONFIG, num_blocks=6, block_size=4)
    for start in range(0, 40, 10):
        greedy(model, list(range(start, start + 10)), store, new=3)
    assert store.tree.stats.evicted_blocks > 0
    with pytest.raises(CacheFull, match="blocks free"):
        greedy(model, list(range(30)), store)
    assert greedy(model, [1, 2, 3], store) == greedy(model, [1, 2, 3], "contiguous")
