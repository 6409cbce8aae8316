"""How large a model is and how much work it does, by the formulas one checks on paper."""

from __future__ import annotations

from labcore.config import ModelConfig
from labcore.errors import ConfigError
from labcore.perf.dtypes import bytes_per_element
from labcore.perf.layout import linears, norm_parameters, position_parameters


def kv_bytes_per_token(config: ModelConfig, dtype: object = "float16") -> int:
    """Bytes the KV cache keeps of one token: 2 * layers * KV heads * head_dim * bytes per element."""
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return round(numbers * bytes_per_element(dtype))


def num_parameters(config: ModelConfig) -> int:
    """All parameters of the model, a tied head counted once. Raises ConfigError for an unknown family."""
    table = config.vocab_size * config.hidden_size
    tables = table if config.tie_word_embeddings else 2 * table
    layer = sum(linear.parameters for linear in linears(config).values())
    return tables + position_parameters(config) + config.num_hidden_layers * layer + norm_parameters(config)


def weight_bytes(config: ModelConfig, dtype: object = "float16") -> int:
    """Bytes the weights take in memory, all in one dtype."""
    return round(num_parameters(config) * bytes_per_element(dtype))


def positions_processed(prompt: int, generated: int, cached: bool) -> int:
    """Positions that go through the network to generate from a prompt.

    With a cache p + n - 1; without one every step starts over: n*p + n*(n - 1)/2. The first token comes out
    of the prompt's own pass, so n tokens need n passes.
    """
    if prompt < 1 or generated < 1:
        raise ConfigError(f"A prompt of {prompt} and {generated} new tokens: both must be at least 1.")
    if cached:
        return prompt + generated - 1
    return generated * prompt + generated * (generated - 1) // 2


def attention_scores_flops(config: ModelConfig, context: int, new_tokens: int = 1) -> int:
    """FLOPs of queries times keys in all layers; the product with the values costs as much again."""
    width = config.num_attention_heads * config.head_dim
    return 2 * config.num_hidden_layers * width * new_tokens * context


def approximate_flops(config: ModelConfig, context: int, new_tokens: int = 1) -> int:
    """The count done on paper: 2 per parameter and new token, plus attention's 4 * L * d * new * context.

    Slightly above `step_costs`, which knows that embeddings are looked up and that a prompt needs one row of
    logits (Kaplan et al. 2020, section 2.1).
    """
    return 2 * num_parameters(config) * new_tokens + 2 * attention_scores_flops(config, context, new_tokens)
