"""What some models have in place of plain attention or of one feed-forward layer, in Hugging Face's names."""

from __future__ import annotations

from dataclasses import dataclass

from labcore.errors import ConfigError


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention (DeepSeek-V2, 2024): keys and values of all heads from one small vector.

    The cache keeps, per token and layer, that vector (kv_lora_rank numbers) and one rotated key that all
    heads share (qk_rope_head_dim). q_lora_rank: queries come through a narrow layer too; None: they do not.
    """

    kv_lora_rank: int
    qk_rope_head_dim: int
    qk_nope_head_dim: int
    v_head_dim: int
    q_lora_rank: int | None = None


@dataclass(frozen=True)
class Experts:
    """A mixture of experts: a token goes through num_experts_per_tok of num_local_experts; all through the
    shared.

    moe_intermediate_size: an expert's inner width. first_k_dense_replace: so many first layers are dense.
    router_bias: the router adds a learnt number per expert.
    """

    num_local_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    n_shared_experts: int = 0
    first_k_dense_replace: int = 0
    router_bias: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.num_experts_per_tok <= self.num_local_experts:
            raise ConfigError(
                f"{self.num_experts_per_tok} of {self.num_local_experts} experts cannot serve a token."
            )
