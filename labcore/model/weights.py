"""Where each tensor of a Hugging Face checkpoint lies in our fused parameters.

The tables below are all there is to it; they are read in both directions, by the loader and by the saver.
A place is a parameter and, where several tensors were fused into one, the part of its rows.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from labcore.config import ModelConfig

# Hugging Face module -> (our module, part of its rows)
MODEL_TABLE = {
    "model.embed_tokens": ("embed_tokens", "all"),
    "model.norm": ("norm", "all"),
    "lm_head": ("lm_head", "all"),
}
LAYER_TABLE = {
    "input_layernorm": ("input_norm", "all"),
    "self_attn.q_proj": ("attention.qkv_proj", "q"),
    "self_attn.k_proj": ("attention.qkv_proj", "k"),
    "self_attn.v_proj": ("attention.qkv_proj", "v"),
    "self_attn.o_proj": ("attention.o_proj", "all"),
    "self_attn.q_norm": ("attention.q_norm", "all"),
    "self_attn.k_norm": ("attention.k_norm", "all"),
    "post_attention_layernorm": ("post_norm", "all"),
    "mlp.gate_proj": ("mlp.gate_up_proj", "gate"),
    "mlp.up_proj": ("mlp.gate_up_proj", "up"),
    "mlp.down_proj": ("mlp.down_proj", "all"),
}

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


class Place(NamedTuple):
    """Rows `start` to `stop` of one of our parameters."""

    parameter: str
    start: int
    stop: int

    def of(self, parameters: dict[str, Tensor]) -> Tensor:
        """The view of the parameter that this place names; writing to it writes to the model."""
        return parameters[self.parameter].detach()[self.start : self.stop]


def parameters_of(transformer: nn.Module) -> dict[str, Tensor]:
    """The parameters by name, each once: a tied head appears as the embedding only."""
    return dict(transformer.named_parameters(remove_duplicate=True))


def places(config: ModelConfig, parameters: dict[str, Tensor]) -> dict[str, Place]:
    """The place of every tensor that a checkpoint of this model holds, by its Hugging Face name."""
    modules = dict(MODEL_TABLE)
    for layer in range(config.num_hidden_layers):
        for theirs, (ours, part) in LAYER_TABLE.items():
            modules[f"model.layers.{layer}.{theirs}"] = (f"layers.{layer}.{ours}", part)
    found = {}
    for theirs, (ours, part) in modules.items():
        for kind in ("weight", "bias"):  # which of them exist, the model itself tells
            if (parameter := parameters.get(f"{ours}.{kind}")) is not None:
                start, stop = _rows(config, part, parameter.shape[0])
                found[f"{theirs}.{kind}"] = Place(f"{ours}.{kind}", start, stop)
    return found


def shapes(config: ModelConfig, skeleton: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that a plain checkpoint of this model holds, by its Hugging Face name."""
    parameters = parameters_of(skeleton)
    return {name: tuple(place.of(parameters).shape) for name, place in places(config, parameters).items()}


def _rows(config: ModelConfig, part: str, rows: int) -> tuple[int, int]:
    queries = config.num_attention_heads * config.head_dim
    keys = queries + config.num_key_value_heads * config.head_dim
    half = config.intermediate_size
    return {
        "all": (0, rows),
        "q": (0, queries),
        "k": (queries, keys),
        "v": (keys, rows),
        "gate": (0, half),
        "up": (half, rows),
    }[part]


def to_hugging_face(transformer: nn.Module, config: ModelConfig) -> dict[str, Tensor]:
    """The weights under Hugging Face's names, as views: no copy is made. A tied head is named once."""
    parameters = parameters_of(transformer)
    return {name: place.of(parameters) for name, place in places(config, parameters).items()}
