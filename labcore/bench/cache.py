"""`labcore bench cache`: what each kind of cache costs at each step, in bytes and in time, beside the
contiguous one.

The time of a decode step depends on how much is held and not on what it says, so caches are filled with
random keys and values through their own contract, and the model keeps few layers: what matters is that the
cache outweighs it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from labcore import cache as caches
from labcore.bench.interleave import Samples
from labcore.bench.trust import AllSamples, best_rate, measure_trusted
from labcore.cache import KVCache
from labcore.model import Model, Transformer
from labcore.perf import costs, roofs
from labcore.perf.roof_measuring import reading
from labcore.perf.timing import synchronize
from labcore.shares import is_trusted

BASE = "contiguous"
# Kinds that forget are given a budget that is small beside the contexts measured.
SPECS = (
    "growing", "paged", "prefix", "sliding_window:window=256", "sinks:budget=256", "heavy_hitters:budget=256",
    "int8", "int4", "kivi2", "offloaded",
)  # fmt: skip
CHUNK = 512  # positions that a cache is filled by at once
WARMUP = 2


@dataclass(frozen=True)
class Row:
    """One kind at one context and batch. Seconds are of one decode step of the whole batch.

    bytes_per_token: allocated for each position of a sequence, on the device and (host_) in host memory.
    ratio: of the medians to the contiguous cache's in the same run. read_bytes: weights and what the step
    reads of the cache; ceiling_share: what they take at the bandwidth (bytes/s), over the time taken. Where
    that was exceeded, the bandwidth of reading as many bytes was measured beside the steps; trusted: whether
    the share can be.
    """

    cache: str
    context: int
    batch: int
    bytes_per_token: float
    host_bytes_per_token: float
    seconds: float
    spread_s: float
    base_seconds: float
    ratio: float
    read_bytes: int
    ceiling_share: float
    bandwidth: float
    trusted: bool


@dataclass(frozen=True)
class CacheResult:
    """What was measured, on what, and the bandwidth it is held against (bytes/s)."""

    model: str
    layers: int
    dtype: str
    weight_bytes: int
    formula_bytes_per_token: int
    read_bandwidth: float
    repeats: int
    rows: list[Row]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return asdict(self)


def bench_cache(
    model: Model,
    specs: Sequence[str] = SPECS,
    *,
    contexts: Sequence[int] = (512, 2048, 8192),
    batches: Sequence[int] = (1, 8),
    repeats: int = 9,
    progress: Callable[[str], None] = lambda _: None,
) -> CacheResult:
    """Every spec against the contiguous cache, two at a time, interleaved. LabError for a wrong spec."""
    for spec in specs:
        caches.create(spec, model.config, capacity=2, device=model.device, dtype=model.dtype)
    bandwidth = roofs(model.device).read_bandwidth
    rows = [
        row
        for batch in batches
        for context in contexts
        for row in _rows(model, specs, context, batch, repeats, bandwidth, progress)
    ]
    return CacheResult(
        model=model.name,
        layers=model.config.num_hidden_layers,
        dtype=_dtype(model),
        weight_bytes=model.weight_bytes,
        formula_bytes_per_token=costs.kv_bytes_per_token(model.config, model.dtype),
        read_bandwidth=bandwidth,
        repeats=repeats,
        rows=rows,
    )


def shortened(model: Model, layers: int, context: int) -> Model:
    """The model with its first layers only, and a context that long. It has random weights anyway."""
    config = model.config.with_(
        num_hidden_layers=min(layers, model.config.num_hidden_layers),
        max_position_embeddings=max(context, model.config.max_position_embeddings),
    )
    with torch.device("meta"):
        cut = Transformer(config)
    kept = {
        name: tensor for name, tensor in model.transformer.state_dict().items() if name in cut.state_dict()
    }
    cut.load_state_dict(kept, assign=True)
    cut.tie()
    cut.reset_rope()
    return Model(model.name, config, cut.requires_grad_(False), model.tokenizer, model.random_weights)


def _rows(
    model: Model, specs: Sequence[str], context: int, batch: int, repeats: int, bandwidth: float,
    progress: Callable[[str], None],
) -> Iterator[Row]:  # fmt: skip
    room = context + 2 * (WARMUP + repeats)  # twice, where a share cannot be trusted the first time
    base = filled(model, BASE, context, batch, room)
    for spec in (BASE, *specs):
        cache = base if spec == BASE else filled(model, spec, context, batch, room)
        contestants = {BASE: step_of(model, base)} | ({} if spec == BASE else {spec: step_of(model, cache)})
        if spec != BASE:
            base.truncate(context)
        progress(f"batch {batch}, context {context}: {spec}")
        read = _read_bytes(model, cache, context, batch)

        def share(samples: AllSamples, spec: str = spec, read: int = read) -> float:
            return read / best_rate(samples, _ROOF, bandwidth) / samples[spec].median(float)

        def roof(_: AllSamples, read: int = read) -> dict[str, Callable[[], float]]:
            return {_ROOF: reading(model.device, read, _dtype(model))}

        samples = measure_trusted(contestants, roof, share, repeats=repeats, warmup=WARMUP)
        rate = best_rate(samples, _ROOF, bandwidth)
        yield _row(spec, cache, samples, context, batch, read, rate)


_ROOF = "roof"


def _read_bytes(model: Model, cache: KVCache, context: int, batch: int) -> int:
    """Weights and what a step reads of the cache; what is reserved and not filled is not read."""
    weights = costs.step_costs(model.config, batch, context, dtype=model.dtype).weight_bytes
    held = min(1.0, cache.kept / cache.capacity) if cache.capacity and cache.kept == cache.length else 1.0
    return round(weights + (cache.nbytes + cache.host_nbytes) * held)


def _dtype(model: Model) -> str:
    return str(model.dtype).removeprefix("torch.")


def _row(
    spec: str, cache: KVCache, samples: dict[str, Samples[float]], context: int, batch: int, read: int,
    bandwidth: float,
) -> Row:  # fmt: skip
    seconds, base = (samples[name].median(float) for name in (spec, BASE))
    share = read / bandwidth / seconds
    return Row(
        cache=spec,
        context=context,
        batch=batch,
        bytes_per_token=cache.nbytes / batch / (cache.capacity or cache.length),
        host_bytes_per_token=cache.host_nbytes / batch / (cache.capacity or cache.length),
        seconds=seconds,
        spread_s=samples[spec].spread(float),
        base_seconds=base,
        ratio=seconds / base,
        read_bytes=read,
        ceiling_share=share,
        bandwidth=bandwidth,
        trusted=is_trusted(share),
    )


@torch.inference_mode()
def filled(model: Model, spec: str, context: int, batch: int, room: int) -> KVCache:
    """A cache that has seen `context` random positions of `batch` sequences, and has room for more."""
    config = model.config
    common = {"batch_size": batch, "capacity": room, "device": model.device, "dtype": model.dtype}
    cache = caches.create(spec, config, **common)  # type: ignore[arg-type]
    generator = torch.Generator(model.device).manual_seed(0)
    for start in range(0, context, CHUNK):
        n = min(CHUNK, context - start)
        cache.begin(n)
        for layer in range(config.num_hidden_layers):
            shapes = [(batch, config.num_attention_heads, n, config.head_dim)]
            shapes += [(batch, config.num_key_value_heads, n, config.head_dim)] * 2
            q, k, v = (
                torch.randn(s, generator=generator, device=model.device, dtype=model.dtype) for s in shapes
            )
            cache.attend(layer, q, k, v)
        cache.commit()
    return cache


def step_of(model: Model, cache: KVCache) -> Callable[[], float]:
    """One decode step of the whole batch, and its seconds."""
    tokens = torch.zeros(cache.batch_size, 1, dtype=torch.int64, device=model.device)

    @torch.inference_mode()
    def run() -> float:
        synchronize(model.device)
        start = time.perf_counter()
        model.transformer(tokens, cache, logits_to_keep=1)
        synchronize(model.device)
        return time.perf_counter() - start

    return run
