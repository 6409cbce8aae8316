"""What a step of the engine costs beside arithmetic and bytes: launches, the interpreter, barriers.

Measured on a thin twin: as many layers and heads, the same code, and next to nothing to compute or to read.
"""

from __future__ import annotations

import torch

from labcore import cache as caches
from labcore.config import ModelConfig
from labcore.model import Model, Transformer
from labcore.perf.timing import measure


def thin(config: ModelConfig) -> ModelConfig:
    """The same number of layers, heads and groups, with matrices that fit into a core's first cache."""
    return config.with_(hidden_size=32, head_dim=16, intermediate_size=32, vocab_size=64)


def engine_overhead(model: Model, *, batch: int = 1, new_tokens: int = 1, repeats: int = 15) -> float:
    """Median seconds of a step of the thin twin: new_tokens=1 for a decode step, 2 for a prompt's path."""
    config = thin(model.config)
    with torch.random.fork_rng():
        transformer = Transformer(config).to(model.device, model.dtype).eval().requires_grad_(False)
    transformer.reset_rope()
    transformer.fast = model.transformer.fast
    held = 4
    cache = caches.create(
        "contiguous", config, batch_size=batch, capacity=64, device=model.device, dtype=model.dtype
    )
    tokens = torch.zeros(batch, held + new_tokens, dtype=torch.int64, device=model.device)

    @torch.inference_mode()
    def step() -> None:
        cache.truncate(min(held, cache.length) if new_tokens == 1 else 0)
        transformer(tokens[:, cache.length :][:, :new_tokens], cache, logits_to_keep=1)

    with torch.inference_mode():
        transformer(tokens[:, :held], cache)
    return measure(step, warmup=5, repeats=repeats, device=model.device).median_s
