"""Hunts of lesson 6: a cache counted by query heads, and an intensity that forgets its output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from labcore.catalog import architecture
from labcore.lab.exercises.checking import Verdict, of_faults
from labcore.lab.hunts.registry import planted

# Bytes a token in fp16, as the models' papers and the cache's tensors have them.
KV_BYTES = {
    "llama-2-7b": 524_288,
    "llama-3-8b": 131_072,
    "mistral-7b": 131_072,
    "llama-2-70b": 327_680,
    "falcon-40b": 122_880,
}
# FLOP per byte in fp16 of a square layer and of a wide head, by (inputs, outputs, rows).
INTENSITIES = {
    (4096, 4096, 8): 8.0,
    (4096, 4096, 128): 120.5,
    (4096, 4096, 512): 409.6,
    (4096, 128_000, 512): 453.5,
}


@planted(
    "06.A",
    title="The cache that is too big",
    target="labcore.perf.sizes:kv_numbers_per_layer",
    bug=(("config.num_key_value_heads", "config.num_attention_heads"),),
    minutes=5,
    hints=(
        "Llama-2-7B comes out right, Llama-3-8B four times too large. What differs between them?",
        "Which heads have keys and values of their own: those that ask, or those that are asked?",
    ),
)
def _check_kv(suspect: Callable[..., Any]) -> Verdict:
    """Bytes a token of five published models."""
    faults = []
    for name, expected in KV_BYTES.items():
        config = architecture(name)
        found = 2 * config.num_hidden_layers * suspect(config)
        if found != expected:
            faults.append(
                f"{name} ({config.attention_kind}) keeps {expected:,} bytes of a token in fp16; this says "
                f"{found:,}, {found / expected:.3g} times as many."
            )
    return of_faults(faults, len(KV_BYTES), "models", "the cache has as many heads as are kept")


@planted(
    "06.B",
    title="Work for nothing",
    target="labcore.perf.costs:linear_costs",
    bug=(("rows * (inputs + outputs) * size", "rows * inputs * size"),),
    minutes=5,
    hints=(
        "At one row the intensity is nearly right. What grows with the rows and is missing?",
        "A layer reads its inputs and its weights. And what does it do with its results?",
    ),
)
def _check_intensity(suspect: Callable[..., Any]) -> Verdict:
    """FLOP per byte of a square layer at three sizes of batch, and of a wide head."""
    faults = []
    for (inputs, outputs, rows), expected in INTENSITIES.items():
        found = suspect(inputs, outputs, rows, "float16").intensity
        if abs(found - expected) > 0.05:
            faults.append(
                f"{inputs} × {outputs} in fp16 over {rows} rows is {expected} FLOP/byte; "
                f"this says {found:.1f}."
            )
    return of_faults(faults, len(INTENSITIES), "layers", "every byte is counted")
