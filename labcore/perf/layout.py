"""Which matrices and vectors the layers of each model family hold.

The engine runs the first kind (gated feed-forward layer, RMSNorm). The others are here so that the memory
and the cost of every catalogued model are counted from its shape, not looked up.
"""

from __future__ import annotations

from dataclasses import dataclass

from labcore.config import ModelConfig
from labcore.errors import ConfigError
from labcore.shapes import Latent


@dataclass(frozen=True)
class Layout:
    """What a family adds to the sizes in a ModelConfig.

    gated: three feed-forward matrices (SwiGLU) instead of two. norms: norms in each layer. norm_bias: norms
    have a shift beside their scale. extra_norms: norms outside of the layers, beyond the final one.
    positions: learnt position vectors beyond max_position_embeddings; None where positions are not learnt.
    rotary: queries and keys are rotated by their position.
    """

    gated: bool = True
    norms: int = 2
    norm_bias: bool = False
    extra_norms: int = 0
    positions: int | None = None
    rotary: bool = True


_LLAMA = Layout()
LAYOUTS: dict[str, Layout] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gpt2": Layout(gated=False, norm_bias=True, positions=0, rotary=False),
    "opt": Layout(
        gated=False, norm_bias=True, positions=2, rotary=False
    ),  # two positions are reserved for padding
    "bloom": Layout(
        gated=False, norm_bias=True, extra_norms=1, rotary=False
    ),  # a norm on the embeddings; ALiBi
    "mpt": Layout(gated=False, rotary=False),  # ALiBi
    "falcon": Layout(gated=False, norms=1, norm_bias=True),  # one norm feeds both blocks
    "falcon_new_decoder": Layout(gated=False, norm_bias=True),
    "palm": Layout(norms=1),
    "phi3": _LLAMA,
    "gemma2": Layout(norms=4),  # before and after attention and feed-forward layer
    "gemma3": Layout(norms=4),
    "mixtral": _LLAMA,
    "qwen3_moe": _LLAMA,
    "deepseek": _LLAMA,
}


def layout_of(config: ModelConfig) -> Layout:
    """The family's layout. Raises ConfigError for a family whose parameters labcore cannot count."""
    try:
        return LAYOUTS[config.model_type]
    except KeyError:
        raise ConfigError(
            f"Cannot count the parameters of a {config.model_type!r} model, only of {', '.join(LAYOUTS)}."
        ) from None


@dataclass(frozen=True)
class Linear:
    """A linear layer: inputs x outputs weights, and a bias of its outputs or none."""

    inputs: int
    outputs: int
    bias: bool = False

    @property
    def parameters(self) -> int:
        """Weights and bias."""
        return self.inputs * self.outputs + (self.outputs if self.bias else 0)


def linears(config: ModelConfig) -> dict[str, Linear]:
    """The linear layers of one Transformer layer, fused as the engine fuses them, by name."""
    hidden, inner = config.hidden_size, config.intermediate_size
    mixed = config.num_attention_heads * config.head_dim
    rows = mixed + 2 * config.num_key_value_heads * config.head_dim
    widened = 2 * inner if layout_of(config).gated else inner
    return {
        "qkv_proj": Linear(hidden, rows, config.attention_bias),
        "o_proj": Linear(mixed, hidden, config.o_proj_bias),
        "gate_up_proj": Linear(hidden, widened, config.mlp_bias),
        "down_proj": Linear(inner, hidden, config.mlp_bias),
    }


def layer_parameters(config: ModelConfig, *, active: bool = False) -> int:
    """Weights and biases of all layers, norms apart. active: only what one token goes through."""
    layers, gates = config.num_hidden_layers, 3 if layout_of(config).gated else 2
    plain = linears(config)
    attention = plain["qkv_proj"].parameters + plain["o_proj"].parameters
    dense = plain["gate_up_proj"].parameters + plain["down_proj"].parameters
    if config.latent is not None:
        attention = _latent_parameters(config, config.latent)
    if config.experts is None:
        return layers * (attention + dense)
    experts = config.experts
    each = gates * config.hidden_size * experts.moe_intermediate_size
    used = experts.num_experts_per_tok if active else experts.num_local_experts
    router = experts.num_local_experts * (config.hidden_size + experts.router_bias)
    first = experts.first_k_dense_replace
    mixed = router + (used + experts.n_shared_experts) * each
    return layers * attention + first * dense + (layers - first) * mixed


def _latent_parameters(config: ModelConfig, latent: Latent) -> int:
    """The narrow and the wide half of queries, of keys and values, their norms, and the way out."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    query = heads * (latent.qk_nope_head_dim + latent.qk_rope_head_dim)
    narrow = latent.q_lora_rank
    queries = hidden * query if narrow is None else hidden * narrow + narrow + narrow * query
    down = hidden * (latent.kv_lora_rank + latent.qk_rope_head_dim) + latent.kv_lora_rank
    up = latent.kv_lora_rank * heads * (latent.qk_nope_head_dim + latent.v_head_dim)
    return queries + down + up + heads * latent.v_head_dim * hidden


def latent_norm_parameters(config: ModelConfig) -> int:
    """Scales of the norms on the narrow vectors of latent attention, over all layers; 0 without it."""
    if config.latent is None:
        return 0
    return config.num_hidden_layers * (config.latent.kv_lora_rank + (config.latent.q_lora_rank or 0))


def norm_parameters_per_layer(config: ModelConfig) -> int:
    """Scales (and shifts) of one layer's norms, those on queries and keys included."""
    layout = layout_of(config)
    vectors = layout.norms * (2 if layout.norm_bias else 1)
    return vectors * config.hidden_size + (2 * config.head_dim if config.qk_norm else 0)


def norm_parameters(config: ModelConfig) -> int:
    """Scales (and shifts) of all norms of the model."""
    layout = layout_of(config)
    outside = (1 + layout.extra_norms) * (2 if layout.norm_bias else 1) * config.hidden_size
    return config.num_hidden_layers * norm_parameters_per_layer(config) + outside


def position_parameters(config: ModelConfig) -> int:
    """Learnt position vectors; none where positions are rotated or biased in."""
    extra = layout_of(config).positions
    return 0 if extra is None else (config.max_position_embeddings + extra) * config.hidden_size
