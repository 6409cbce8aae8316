"""How large a model is and how much work it does, by the formulas one checks on paper."""

from __future__ import annotations

from labcore.config import ModelConfig
from labcore.errors import ConfigError
from labcore.perf.dtypes import bytes_per_element
from labcore.perf.layout import layer_parameters, norm_parameters, position_parameters
from labcore.shapes import Experts


def kv_numbers_per_layer(config: ModelConfig) -> int:
    """Numbers one layer's cache keeps of a token: a key and a value per KV head; with MLA, its latent."""
    if config.latent is not None:
        return config.latent.kv_lora_rank + config.latent.qk_rope_head_dim
    return 2 * config.num_key_value_heads * config.head_dim


def positions_seen(config: ModelConfig, tokens: int, new: int = 1, *, kept: int | None = None) -> int:
    """Positions that the last `new` of a sequence's `tokens` see between them, summed over the layers.

    A windowed layer sees its window: the first of the new positions as many as that, each later one a
    further one. kept: what every layer sees at most instead (a cache that forgets). With new=1 it is what the
    caches of all layers have to hold.
    """

    def seen(most: int | None) -> int:
        return tokens if most is None else min(tokens, most + new - 1)

    windowed = config.windowed_layers if kept is None else 0
    return (config.num_hidden_layers - windowed) * seen(kept) + windowed * seen(config.sliding_window)


def kv_bytes_per_token(config: ModelConfig, dtype: object = "float16") -> int:
    """Bytes the KV cache keeps of one token: 2 * layers * KV heads * head_dim * bytes per element.

    With MLA (kv_lora_rank + qk_rope_head_dim) in place of 2 * KV heads * head_dim. Only up to the window of
    its layers does a sequence hold tokens times as much: `kv_bytes` counts sequences.
    """
    return kv_bytes(config, 1, dtype)


def kv_bytes(
    config: ModelConfig, tokens: int, dtype: object = "float16", *, bits: float | None = None
) -> int:
    """Bytes the KV cache of one sequence holds when it is `tokens` long; windowed layers keep their window.

    The one count of cache bytes: napkin, planner, forecast, costs and simulator all ask here. A model that
    the engine runs ends its context at its window, so that real caches hold this too. dtype: the cache's.
    bits: of a stored number, scales included (4.5, say), instead of the dtype's.
    """
    size = bytes_per_element(dtype) if bits is None else bits / 8
    return round(positions_seen(config, tokens) * kv_numbers_per_layer(config) * size)


def num_parameters(config: ModelConfig, *, active: bool = False) -> int:
    """All parameters of the model, a tied head counted once. Raises ConfigError for an unknown family.

    active: of a mixture of experts only those that one token goes through.
    """
    table = config.vocab_size * config.hidden_size
    tables = table if config.tie_word_embeddings else 2 * table
    layers = layer_parameters(config, active=active)
    return tables + position_parameters(config) + layers + norm_parameters(config)


def weight_bytes(config: ModelConfig, dtype: object = "float16", *, bits: float | None = None) -> int:
    """Bytes the weights take in memory. bits: of a weight in the layers' matrices, scales included (4.125,
    say), where only those are narrower: embeddings, head and norms stay in dtype."""
    size, every = bytes_per_element(dtype), num_parameters(config)
    if bits is None:
        return round(every * size)
    layers = layer_parameters(config)
    return round((every - layers) * size + layers * bits / 8)


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
    """FLOPs of queries times the keys that they see in all layers; times the values it is as much again."""
    width = config.num_attention_heads * config.head_dim
    return 2 * width * new_tokens * positions_seen(config, context, new_tokens)


def approximate_flops(config: ModelConfig, context: int, new_tokens: int = 1) -> int:
    """The count done on paper: 2 per parameter and new token, plus attention's 4 * L * d * new * context.

    Slightly above `step_costs`, which knows that embeddings are looked up and that a prompt needs one row of
    logits (Kaplan et al. 2020, section 2.1).
    """
    return 2 * num_parameters(config) * new_tokens + 2 * attention_scores_flops(config, context, new_tokens)


def experts_touched(experts: Experts, tokens: int) -> float:
    """Experts of a layer that `tokens` tokens reach between them, on average, were all equally likely.

    E * (1 - (1 - k / E)**tokens): a token leaves an expert out with probability 1 - k / E.
    """
    total = experts.num_local_experts
    return float(total * (1 - (1 - experts.num_experts_per_tok / total) ** tokens))


def parameters_touched(config: ModelConfig, tokens: int) -> float:
    """Parameters that a step of so many tokens reads: all, but for experts that no token is sent to."""
    experts = config.experts
    if experts is None:
        return num_parameters(config)
    all_, used = num_parameters(config), num_parameters(config, active=True)
    each = (all_ - used) / (experts.num_local_experts - experts.num_experts_per_tok or 1)
    return all_ - each * (experts.num_local_experts - experts_touched(experts, tokens))


def ring_bytes(message: float, ranks: int) -> float:
    """Bytes that each rank sends in a ring all-reduce of a message: 2 (R - 1) / R of it.

    (R - 1) / R of it to add the pieces up, as much again to hand the sums round (Patarasuk and Yuan 2009).
    """
    if ranks < 1:
        raise ConfigError(f"An all-reduce over {ranks} ranks: there must be at least 1.")
    return 2 * (ranks - 1) / ranks * message


def reduced_bytes(config: ModelConfig, rows: int, dtype: object = "float16") -> int:
    """Bytes that tensor parallelism adds up over the ranks in one step of `rows` positions.

    Two all-reduces a layer, after attention and after the feed-forward part, each of a vector of hidden_size
    for every position (Shoeybi et al. 2019).
    """
    return round(2 * config.num_hidden_layers * rows * config.hidden_size * bytes_per_element(dtype))
