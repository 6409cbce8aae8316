"""One count of cache bytes: napkin, planner, forecast, costs and simulator agree on every shape."""

from __future__ import annotations

import pytest

from labcore import catalog
from labcore.config import ModelConfig
from labcore.perf import balance, memory, predict
from labcore.perf.costs import (
    CacheTraffic,
    approximate_flops,
    kv_bytes,
    kv_bytes_per_token,
    num_parameters,
    step_costs,
    weight_bytes,
)
from labcore.perf.forecast import forecast
from labcore.perf.peaks import Machine, machine_from_gpu
from labcore.serving.simulated.costs import Numbers, Part, cache_blocks, mixed_costs
from labcore.serving.simulated.engine import WindowedPool

DTYPES = ("float32", "float16", "bfloat16", "float8", "int8", "int4")
CONTEXTS = (2, 511, 1024, 2048, 4097, 32_768, 131_072, 300_000)
BATCH = 3
WIDE = Machine("wide", 10**13, 1e12, {"float32": 1e14, "float16": 2e14})
GEMMA, H100 = catalog.architecture("gemma-3-27b"), catalog.gpu("h100-sxm")
WINDOWED = ("gemma-2-9b", "gemma-3-27b", "gemma-3-1b", "phi-3-mini", "mistral-7b-v0.1")


def numbers_layer_by_layer(config: ModelConfig, context: int) -> int:
    """Each layer asked for itself, as the papers describe it."""
    latent, total = config.latent, 0
    each = 2 * config.num_key_value_heads * config.head_dim
    if latent is not None:
        each = latent.kv_lora_rank + latent.qk_rope_head_dim
    for layer in range(1, config.num_hidden_layers + 1):
        every = config.sliding_window_pattern
        full = config.sliding_window is None or (every is not None and layer % every == 0)
        total += each * (context if full else min(context, config.sliding_window or 0))
    return total


@pytest.mark.parametrize("name", catalog.architectures())
def test_everybody_counts_alike(name: str) -> None:
    config = catalog.architecture(name)
    for context in CONTEXTS:
        numbers = numbers_layer_by_layer(config, context)
        for dtype in DTYPES:
            one = numbers * (4 if dtype == "float32" else 2)  # narrow weights leave the cache in 16 bits
            wanted = {"context": context, "dtype": dtype}
            napkin = predict.napkin(config, WIDE, BATCH, context, dtype)
            plan = memory.plan(config, WIDE, batch=BATCH, lean=True, **wanted)
            step = step_costs(config, BATCH, context, dtype=dtype)
            mixed = mixed_costs(config, [Part(context - 1, 1)] * BATCH, Numbers(dtype))
            assert napkin.kv_bytes == plan.cache == step.kv_read_bytes == BATCH * one, (context, dtype)
            assert mixed.kv_read_bytes - mixed.operation("block_table").kv_bytes == BATCH * one
            assert napkin.terms.cache_s * WIDE.bandwidth == pytest.approx(BATCH * one)
            assert memory.largest_batch(plan) == min(napkin.max_batch, 1 << 24), (context, dtype)
        assert kv_bytes(config, context, bits=4.5) == round(numbers * 4.5 / 8)


@pytest.mark.parametrize("name", WINDOWED)
def test_forecast_and_simulator_hold_as_many_sequences(name: str) -> None:
    config, block = catalog.architecture(name), 16
    for context in (512, 4096, 131_072):
        fits = forecast(config, WIDE, context=context).max_batch
        assert fits == memory.largest_batch(memory.plan(config, WIDE, context=context))
        blocks = WindowedPool(1, block, config).blocks_for(context)
        room = 0.9 * WIDE.memory_bytes - weight_bytes(config)
        sequences = cache_blocks(config, WIDE) // blocks
        assert sequences == pytest.approx(room / kv_bytes(config, context), rel=0.02)


def test_a_pool_without_windows_counts_as_before() -> None:
    pool = WindowedPool(1000, 16, catalog.architecture("llama-3-8b"))
    assert [pool.blocks_for(positions) for positions in (0, 1, 16, 17, 8192)] == [0, 1, 1, 2, 512]


def test_gemma_at_its_longest() -> None:
    napkin = predict.napkin(GEMMA, H100, context=131_072)
    assert napkin.kv_bytes / 1e9 == pytest.approx(11.2, abs=0.05)  # 66.6 without windows
    assert napkin.fits
    assert memory.plan(GEMMA, H100, context=131_072).cache == napkin.kv_bytes


@pytest.mark.parametrize("name", catalog.architectures(runnable_only=True))
def test_what_runs_ends_at_its_window_so_that_real_caches_hold_the_same(name: str) -> None:
    config = catalog.architecture(name)
    longest = config.max_position_embeddings
    assert kv_bytes(config, longest) == longest * kv_bytes_per_token(config)


def test_balance_knows_of_windows() -> None:
    assert balance.balance_batch(GEMMA, 131_072) == weight_bytes(GEMMA) / kv_bytes(GEMMA, 131_072)
    machine = machine_from_gpu(catalog.gpu("a100-80gb-sxm"))
    for window in (1024, 256):  # reached within it, and beyond
        config = GEMMA.with_(sliding_window=window)
        longest = balance.longest_compute_bound_context(config, machine)
        assert (longest > window) == (window == 256)
        flops = approximate_flops(config, round(longest))
        assert flops / kv_bytes(config, round(longest)) == pytest.approx(machine.ridge(), rel=1e-3)
    windowed = GEMMA.with_(sliding_window_pattern=None, sliding_window=64)
    assert balance.longest_compute_bound_context(windowed, machine) == float("inf")


def test_behind_a_shared_prefix_each_sequence_fills_a_window_of_its_own() -> None:
    shared = memory.plan(GEMMA, H100, batch=4, context=60_000, block_size=16, shared_prefix=50_000, lean=True)
    assert shared.cache == kv_bytes(GEMMA, 50_000) + 4 * kv_bytes(GEMMA, 10_000)


def test_where_memory_sets_no_end_the_model_does() -> None:
    phi = catalog.architecture("phi-3-mini")  # every layer has a window
    assert memory.largest_context(memory.plan(phi, H100)) == phi.max_position_embeddings
    assert 0 < memory.largest_context(memory.plan(phi, catalog.gpu("t4"), batch=64)) < 2047


def test_bits_of_a_weight_count_wherever_it_lies() -> None:
    llama = catalog.architecture("llama-2-7b")
    packed = weight_bytes(llama, bits=4.125)
    tables = 2 * llama.vocab_size * llama.hidden_size * 2
    assert packed == pytest.approx(tables + (num_parameters(llama) * 2 - tables) / 16 * 4.125, rel=1e-3)
    a10, wanted = catalog.gpu("a10"), {"context": 4096, "weight_bits": 4.125}
    planned = memory.plan(llama, a10, **wanted)
    assert planned.weights == packed
    assert forecast(llama, a10, **wanted).max_batch == memory.largest_batch(planned)
    blocks = cache_blocks(llama, a10, Numbers(weight_bits=4.125))
    assert blocks == (int(0.9 * a10.memory_bytes) - packed) // kv_bytes(llama, 16)
    step = step_costs(llama, 1, 64, weight_bits=4.125, traffic=CacheTraffic())
    assert step.weight_bytes == pytest.approx(packed - tables / 2, rel=1e-3)  # one row of the embeddings
