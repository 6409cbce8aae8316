"""Tiny random checkpoints, written by transformers, for tests that hold labcore against it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

VOCAB = 320
_SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": VOCAB,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# name -> (transformers' class prefix, what differs from _SMALL)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-mha": ("Llama", {"num_key_value_heads": 4}),
    "llama-mqa": ("Llama", {"num_key_value_heads": 1}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-rope-linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e4, "factor": 4.0}},
    ),
    "llama-rope-llama3": ("Llama", {"rope_parameters": _LLAMA3, "tie_word_embeddings": True}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-head-dim": ("Mistral", {"head_dim": 24, "sliding_window": 256}),
    "qwen2": ("Qwen2", {}),
    "qwen2-tied": ("Qwen2", {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen3-tied-biases": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True, "attention_bias": True}),
}


def build(case: str, seed: int = 0, **changes: Any) -> Any:
    """A transformers model of one of CASES, all of its weights random (biases and norms too), fp32."""
    import transformers

    prefix, differs = CASES[case]
    config = getattr(transformers, f"{prefix}Config")(**(_SMALL | differs | changes))
    model = getattr(transformers, f"{prefix}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # wide enough that a tensor in the wrong place changes the logits by much more than a tolerance
            spread = 0.2 if parameter.dim() == 1 else parameter.shape[1] ** -0.5
            centre = 1.0 if "norm" in name else 0.0
            parameter.normal_(0.0, spread, generator=generator).add_(centre)
    return model


def write(case: str, folder: Path, seed: int = 0, shard_size: str = "1GB", **changes: Any) -> Any:
    """Write one of CASES into a folder (in shards if shard_size is small); returns the model."""
    model = build(case, seed, **changes)
    model.save_pretrained(folder, max_shard_size=shard_size)
    return model


def respell(folder: Path) -> dict[str, Any]:
    """Rewrite config.json in the old spelling (rope_theta, rope_scaling with `type`) and return it."""
    path = folder / "config.json"
    data = json.loads(path.read_text())
    rope = data.pop("rope_parameters")
    data["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    # the oldest files say `type`; Llama 3.1's own, the only ones with a "llama3" kind, say `rope_type`
    data["rope_scaling"] = (
        None if kind == "default" else rope | {"rope_type" if kind == "llama3" else "type": kind}
    )
    data["torch_dtype"] = data.pop("dtype", "float32")
    path.write_text(json.dumps(data))
    return data


def edit_config(folder: Path, **changes: Any) -> None:
    """Set fields of a folder's config.json; a value of ... removes the field."""
    path = folder / "config.json"
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not ...}))
