"""Facts about roofs on paper: ridges of catalogued devices, and what follows from an intensity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from labcore import catalog
from labcore.config import ModelConfig
from labcore.perf import balance, predict
from labcore.perf.costs import elementwise_costs, kv_bytes_per_token, linear_costs, weight_bytes
from labcore.perf.peaks import Machine, as_machine

FORMATS = ("float16", "int8", "int4")
WALL = ("llama-2-7b", "llama-3-8b")
GPUS = (
    "a10", "a100-80gb-sxm", "l4", "l40s", "h100-pcie", "h100-sxm", "h200-sxm", "t4", "rtx-a6000", "rtx-4090",
    "b200-sxm", "mi300x",
)  # fmt: skip


def gpu_rows(names: Sequence[str] = GPUS, weights: int = 14 * 10**9) -> list[dict[str, Any]]:
    """Data sheets, the ridge between the two roofs, and the time to read so many bytes of weights once."""
    rows = []
    for gpu in map(catalog.gpu, names):
        rows.append(
            {
                "device": gpu.title,
                "GB": round(gpu.memory_bytes / 1e9),
                "GB/s": round(gpu.bandwidth / 1e9),
                "fp16 TFLOP/s": round(gpu.flops["float16"] / 1e12),
                "ridge (FLOP/byte)": f"{as_machine(gpu).ridge():.1f}",
                f"reads {weights / 1e9:g} GB in (ms)": round(weights / gpu.bandwidth * 1e3, 2),
            }
        )
    return rows


def roof_facts() -> list[dict[str, Any]]:
    """What the two roofs say of a few operations, on paper."""
    a10 = catalog.gpu("a10")
    half, more = balance.attainable(a10, 50), balance.attainable(a10, 400) / balance.attainable(a10, 100)
    seen = balance.utilisation(Machine("", 0, 2e12, {"float16": 1e15}), 0.014, bytes_moved=14e9)
    return [
        {"fact": "y = f(x) in fp16, FLOP per byte", "value": elementwise_costs(1000).intensity},
        {"fact": "50 FLOP/byte on an A10 (TFLOP/s)", "value": round(half / 1e12, 1)},
        {"fact": "  of its peak (%)", "value": round(100 * half / a10.flops["float16"])},
        {"fact": "100 → 400 FLOP/byte on an A10, faster by", "value": round(more, 2)},
        {"fact": "14 GB in 14 ms on 2 TB/s, MBU (%)", "value": round(100 * seen.mbu)},
    ]


def intensity_rows(rows: Sequence[int] = (1, 8, 128, 512), width: int = 4096) -> list[dict[str, Any]]:
    """A linear layer of width x width in fp16 over so many rows."""
    found = [linear_costs(width, width, n) for n in rows]
    return [
        {
            "rows": n,
            "FLOP": one.flops,
            "bytes": one.bytes,
            "FLOP per byte": f"{one.intensity:.1f}",
        }
        for n, one in zip(rows, found, strict=True)
    ]


def critical_rows(names: Sequence[str] = ("a10", "a100-80gb-sxm", "h100-sxm")) -> list[dict[str, Any]]:
    """Tokens a step from which linear layers are bound by arithmetic in 16 bits, by the weights' format."""
    return [
        {"device": gpu.title}
        | {
            f"{dtype} weights": round(balance.critical_batch(gpu, dtype))
            for dtype in ("float16", "int8", "int4")
        }
        for gpu in map(catalog.gpu, names)
    ]


def step_rows_on_paper(
    config: ModelConfig, gpu: catalog.GPU, context: int = 1024, batches: Sequence[int] = (1, 8, 32)
) -> list[dict[str, Any]]:
    """The napkin's decode step by batch, up to the wall."""
    wall = predict.largest_batch(config, gpu, context)
    rows = []
    for batch in (*batches, wall):
        terms = predict.ideal_terms(config, gpu, batch, context)
        rows.append(
            {
                "batch": batch,
                "weights (ms)": round(terms.weights_s * 1e3, 2),
                "cache (ms)": round(terms.cache_s * 1e3, 2),
                "arithmetic (ms)": round(terms.compute_s * 1e3, 2),
                "step (ms)": f"{terms.seconds * 1e3:.2f}",
                "tok/s": f"{batch / terms.seconds:.1f}",
            }
        )
    return rows


def wall_rows(shapes: Sequence[str] = WALL, context: int = 1024) -> list[dict[str, Any]]:
    """Where the cache outweighs the weights, and from which context no batch is compute-bound."""
    a100 = catalog.gpu("a100-80gb-sxm")
    rows = []
    for name in shapes:
        config = catalog.architecture(name)
        rows.append(
            {
                "model": name,
                "weights (GB)": round(weight_bytes(config) / 1e9, 2),
                "cache a token (B)": kv_bytes_per_token(config),
                f"cache = weights at batch, {context} tokens": int(balance.balance_batch(config, context)),
                "decode attention, FLOP/byte": config.queries_per_kv_head,
                "never compute-bound beyond (tokens)": round(
                    balance.longest_compute_bound_context(config, a100)
                ),
            }
        )
    return rows


def pod_rows(batches: Sequence[int] = (1, 8)) -> list[dict[str, Any]]:
    """Llama-2-13B over eight TPU v5e, 8,192 tokens a sequence in bf16: eight devices as one machine."""
    pod = as_machine(catalog.gpu("tpu-v5e")).times(8)
    config = catalog.architecture("llama-2-13b")
    rows = []
    for batch in batches:
        seconds = predict.ideal_step(config, pod, batch, 8192, "bfloat16")
        rows.append({"batch": batch, "step (ms)": f"{seconds * 1e3:.2f}", "tok/s": f"{batch / seconds:.1f}"})
    return rows
