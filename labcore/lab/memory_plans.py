"""Memory Tetris: a GPU's memory as weights and a strip per request, under four ways of keeping the cache."""

from __future__ import annotations

from typing import Any

from labcore.catalog import GPU
from labcore.config import ModelConfig
from labcore.perf import memory
from labcore.perf.memory import Deployment, MemoryPlan
from labcore.perf.sizes import kv_bytes

KEEPING: dict[str, dict[str, Any]] = {
    "exactly what tokens need": {},
    "reserved for the model's whole context": {"reserve": True},
    "in blocks of 16": {"block_size": 16},
    "in blocks of 16, first half shared": {"block_size": 16, "shared": True},
}


def plan_of(
    config: ModelConfig, gpu: GPU, *, batch: int, context: int, dtype: str, cache_bits: float, keeping: str
) -> MemoryPlan:
    """The plan that the controls describe; on paper, so without activations."""
    wanted = KEEPING[keeping]
    reserve = max(context, config.max_position_embeddings) if "reserve" in wanted else None
    return memory.plan_for(
        Deployment(
            config,
            batch=batch,
            context=context,
            dtype=dtype,
            cache_bits=cache_bits,
            reserve=reserve,
            block_size=wanted.get("block_size"),
            shared_prefix=context // 2 if "shared" in wanted else 0,
        ),
        gpu,
        lean=True,
    )


def plan_rows(found: MemoryPlan) -> list[dict[str, Any]]:
    """The parts of a plan."""
    parts = {"weights": found.weights, "cache": found.cache, "allocated and not filled": found.waste}
    parts["free" if found.fits else "missing"] = abs(found.free)
    return [
        {"part": name, "GB": value / 1e9, "of the memory (%)": 100 * value / found.memory_bytes}
        for name, value in parts.items()
    ]


def plan_finding(found: MemoryPlan) -> str:
    """Whether it fits, how many would, and what else would."""
    wanted = found.deployment
    most = memory.largest_batch(found)
    head = f"{found.machine}: {wanted.batch} × {wanted.context:,} tokens take {found.total / 1e9:.1f} GB"
    share = found.waste / max(1, found.cache + found.waste)
    tail = f" {share:.0%} of the cache's memory is not filled." if found.waste else ""
    if found.fits:
        return f"{head} of {found.memory_bytes / 1e9:.0f} and fit; up to {most:,} such requests would.{tail}"
    others = " or ".join(change for change, _ in memory.nearest(found)) or "nothing near it"
    return f"{head}, {-found.free / 1e9:.1f} more than there are.{tail} What fits: {others}."


def keeping_rows(config: ModelConfig, gpu: GPU, context: int) -> list[dict[str, Any]]:
    """Requests of `context` tokens that fit, and the share of their memory that holds nothing."""
    rows = []
    for keeping in KEEPING:
        found = plan_of(
            config, gpu, batch=1, context=context, dtype="float16", cache_bits=16.0, keeping=keeping
        )
        most = memory.largest_batch(found)
        rows.append(
            {
                "the cache is kept": keeping,
                "requests that fit": most,
                "not filled (%)": round(100 * found.waste / (found.cache + found.waste), 1),
            }
        )
    return rows


def kv_rows(configs: dict[str, ModelConfig], context: int) -> list[dict[str, Any]]:
    """Bytes per token in fp16, and of one sequence of `context` tokens."""
    return [
        {
            "model": name,
            "kind": config.attention_kind,
            "windowed layers": config.windowed_layers,
            "bytes per token": kv_bytes(config, 1),
            f"GB at {context:,} tokens": round(kv_bytes(config, context) / 1e9, 2),
        }
        for name, config in configs.items()
    ]


def paper_plan_rows(
    llama: ModelConfig, grouped: ModelConfig, opt: ModelConfig, a10: GPU
) -> list[dict[str, Any]]:
    """The chapter's numbers, out of the planner; for the A10 the weights are 14 GB, as the chapter says."""
    per_token = kv_bytes(llama, 1)
    left = a10.memory_bytes - 14 * 10**9
    batch = 32 * kv_bytes(grouped, 4096) / 1e9
    every_head = grouped.with_(num_key_value_heads=grouped.num_attention_heads)
    single = 32 * kv_bytes(every_head, 4096) / 1e9
    slots = 12 * 2**30 // kv_bytes(opt, 1)
    return [
        {
            "question": "Llama-2-7B: tokens in the 10 GB that an A10 has left",
            "answer": f"{left // per_token:,}",
        },
        {"question": "sequences of 4,096 of them", "answer": f"{left // (4096 * per_token)}"},
        {"question": "the same with an 8-bit cache", "answer": f"{left // (2048 * per_token)}"},
        {"question": "Llama-2-70B, 32 × 4,096 tokens, 8 KV heads", "answer": f"{batch:.1f} GB"},
        {"question": "the same with 64 KV heads", "answer": f"{single:.1f} GB"},
        {"question": "OPT-13B: slots in 12 GiB", "answer": f"{slots:,}"},
        {"question": "requests, if 2,048 are reserved for each", "answer": f"{slots // 2048}"},
        {"question": "positions a block of 16 wastes on average", "answer": f"{memory.expected_waste(16)}"},
    ]
