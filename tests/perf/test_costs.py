"""Costs: golden values of the lessons, and PyTorch's own FLOP counter and tensors as the judges."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from labcore.catalog import architecture
from labcore.config import ModelConfig
from labcore.errors import ConfigError, DeviceError
from labcore.model.transformer import Transformer
from labcore.perf import costs

LLAMA = architecture("llama-2-7b")
TINY = ModelConfig(
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,  # not hidden_size / heads
    intermediate_size=48,
    vocab_size=64,
    max_position_embeddings=64,
)
VARIANTS = {
    "gqa": TINY,
    "mha-tied": TINY.with_(num_key_value_heads=4, tie_word_embeddings=True),
    "mqa-biases": TINY.with_(num_key_value_heads=1, attention_bias=True, o_proj_bias=True, mlp_bias=True),
    "qwen3": TINY.with_(qk_norm=True, model_type="qwen3"),
    "qwen2": TINY.with_(attention_bias=True, model_type="qwen2"),
}


class PlainCache:
    """Attention as two plain products over the full rectangle, so that the counter sees every one."""

    packed = False

    def __init__(self, layers: int, past: int, config: ModelConfig, batch: int) -> None:
        shape = (batch, config.num_key_value_heads, past, config.head_dim)
        self.past = past
        self.kept = [(torch.zeros(shape), torch.zeros(shape)) for _ in range(layers)]

    def begin(self, n: int) -> Tensor:
        return torch.arange(self.past, self.past + n)[None]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = torch.cat([self.kept[layer][0], k], dim=2), torch.cat([self.kept[layer][1], v], dim=2)
        self.kept[layer] = (keys, values)
        group = q.shape[1] // k.shape[1]
        keys, values = keys.repeat_interleave(group, dim=1), values.repeat_interleave(group, dim=1)
        return (q @ keys.transpose(2, 3)).softmax(dim=-1) @ values

    def commit(self) -> None:
        pass


@pytest.mark.parametrize(("batch", "context", "new"), [(1, 9, 9), (2, 9, 9), (3, 12, 1), (2, 12, 5)])
@pytest.mark.parametrize("name", VARIANTS)
def test_flops_equal_pytorchs_counter(name: str, batch: int, context: int, new: int) -> None:
    config = VARIANTS[name]
    cache = PlainCache(config.num_hidden_layers, context - new, config, batch)
    model = Transformer(config)
    model.fast = False  # the counter sees PyTorch's operators, not native kernels
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(batch, new, dtype=torch.int64), cache, 1)
    # The rotary angles are an outer product, which the counter does not see as a matrix product.
    assert counter.get_total_flops() == costs.step_costs(config, batch, context, new).flops


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_equal_the_transformers(name: str) -> None:
    with torch.device("meta"):
        model = Transformer(VARIANTS[name])
    assert costs.num_parameters(VARIANTS[name]) == sum(p.numel() for p in model.parameters())


def _transformers_configs() -> dict[str, tuple[object, ModelConfig]]:
    """Tiny models of the families that we only count, as transformers builds them."""
    hf = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "head_dim": 8,
        "vocab_size": 64,
    }
    whole = sizes | {"intermediate_size": 128, "max_position_embeddings": 20, "tie_word_embeddings": True}
    biases = {"attention_bias": True, "o_proj_bias": True, "mlp_bias": True}
    falcon = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "vocab_size": 64,
        "bias": False,
    }

    def ours(kind: str, kv_heads: int = 4, **more: object) -> ModelConfig:
        return ModelConfig(**(whole | {"model_type": kind, "num_key_value_heads": kv_heads} | more))  # type: ignore[arg-type]

    opt = hf.OPTConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        ffn_dim=128,
        vocab_size=64,
        max_position_embeddings=20,
        word_embed_proj_dim=32,
    )
    return {
        "gpt2": (
            hf.GPT2Config(n_embd=32, n_layer=3, n_head=4, vocab_size=64, n_positions=20),
            ours("gpt2", **biases),
        ),
        "opt": (opt, ours("opt", **biases)),
        "bloom": (
            hf.BloomConfig(hidden_size=32, n_layer=3, n_head=4, vocab_size=64),
            ours("bloom", **biases),
        ),
        "mpt": (hf.MptConfig(d_model=32, n_layers=3, n_heads=4, vocab_size=64, no_bias=True), ours("mpt")),
        "falcon": (hf.FalconConfig(**falcon, multi_query=True), ours("falcon", 1)),
        "falcon_new_decoder": (
            hf.FalconConfig(**falcon, new_decoder_architecture=True, num_kv_heads=2),
            ours("falcon_new_decoder", 2),
        ),
    }


@pytest.mark.parametrize("family", ["gpt2", "opt", "bloom", "mpt", "falcon", "falcon_new_decoder"])
def test_parameters_of_other_families_equal_transformers(family: str) -> None:
    from transformers import AutoModelForCausalLM

    theirs, ours = _transformers_configs()[family]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(theirs)
    assert costs.num_parameters(ours) == model.num_parameters()


def test_unknown_family_is_refused() -> None:
    with pytest.raises(ConfigError, match="'rwkv'"):
        costs.num_parameters(TINY.with_(model_type="rwkv"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama-2-7b", 524_288),
        ("llama-2-13b", 819_200),
        ("llama-2-70b", 327_680),
        ("mistral-7b", 131_072),
        ("llama-3-8b", 131_072),
        ("opt-30b", 1_376_256),
        ("opt-175b", 4_718_592),
        ("falcon-40b", 122_880),
    ],
)
def test_kv_bytes_per_token(name: str, expected: int) -> None:
    assert costs.kv_bytes_per_token(architecture(name), "float16") == expected
    assert costs.kv_bytes_per_token(architecture(name), torch.float32) == 2 * expected
    assert costs.kv_bytes_per_token(architecture(name), "int4") * 4 == expected


def test_kv_bytes_equal_the_tensors() -> None:
    cache = PlainCache(TINY.num_hidden_layers, 7, TINY, batch=2)
    held = sum(tensor.nbytes for pair in cache.kept for tensor in pair)
    assert held == 2 * 7 * costs.kv_bytes_per_token(TINY, "float32")


@pytest.mark.parametrize(
    ("prompt", "generated", "uncached", "cached"),
    [(8, 3, 27, 10), (10, 50, 1725, 59), (512, 512, 392_960, 1023)],
)
def test_positions_processed(prompt: int, generated: int, uncached: int, cached: int) -> None:
    assert costs.positions_processed(prompt, generated, cached=False) == uncached
    assert costs.positions_processed(prompt, generated, cached=True) == cached
    # and step by step, from the steps' own counts
    steps = [costs.step_costs(TINY, 1, prompt + i, cached=False).positions for i in range(generated)]
    assert sum(steps) == uncached
    assert (
        prompt + sum(costs.step_costs(TINY, 1, prompt + i).positions for i in range(1, generated)) == cached
    )


def test_golden_flops_of_lesson_3() -> None:
    assert costs.attention_scores_flops(LLAMA, 1000, 1000) == pytest.approx(2.62e11, rel=2e-3)
    assert costs.attention_scores_flops(LLAMA, 1000) == pytest.approx(2.62e8, rel=2e-3)
    assert (
        costs.attention_scores_flops(LLAMA, 1000, 1000) / costs.attention_scores_flops(LLAMA, 100, 100) == 100
    )
    late, early = costs.approximate_flops(LLAMA, 1000, 1000), costs.approximate_flops(LLAMA, 100, 100)
    assert late / early == pytest.approx(10.35, abs=0.005)
    share = 2 * costs.attention_scores_flops(LLAMA, 1000, 1000) / late
    assert share == pytest.approx(0.037, abs=5e-4)
    half = costs.num_parameters(LLAMA) // (2 * LLAMA.num_hidden_layers * LLAMA.hidden_size)
    assert half == pytest.approx(25_711, rel=5e-4)
    assert 4 * costs.attention_scores_flops(LLAMA, half) == pytest.approx(
        costs.approximate_flops(LLAMA, half), rel=1e-4
    )


def test_flops_saved_by_the_cache() -> None:
    lengths = range(512, 1024)
    uncached = sum(costs.approximate_flops(LLAMA, t, t) for t in lengths)
    cached = costs.approximate_flops(LLAMA, 512, 512) + sum(
        costs.approximate_flops(LLAMA, t) for t in lengths[1:]
    )
    assert uncached / cached == pytest.approx(386, abs=0.5)


def test_a_decode_step_reads_every_weight_but_the_embedding_table() -> None:
    step = costs.step_costs(LLAMA, 1, 1024)
    table = 2 * LLAMA.vocab_size * LLAMA.hidden_size
    assert step.weight_bytes == costs.weight_bytes(LLAMA) - table + 2 * LLAMA.hidden_size
    assert step.kv_read_bytes == 1024 * 524_288
    assert step.kv_write_bytes == 524_288


def test_a_tied_head_is_stored_once_and_read_every_step() -> None:
    tied = TINY.with_(tie_word_embeddings=True)
    table = TINY.vocab_size * TINY.hidden_size
    assert costs.num_parameters(TINY) - costs.num_parameters(tied) == table
    assert costs.step_costs(tied, 1, 4).weight_bytes == costs.step_costs(TINY, 1, 4).weight_bytes


def test_sums_are_the_rows_sums() -> None:
    step = costs.step_costs(LLAMA, 4, 300, 20, dtype="bfloat16", cache_dtype="int8", logits="all")
    assert step.bytes == sum(op.bytes for op in step.operations)
    apart = step.weight_bytes + step.kv_read_bytes + step.kv_write_bytes + step.activation_bytes
    assert step.bytes == apart
    assert step.kv_read_bytes == 4 * 300 * costs.kv_bytes_per_token(LLAMA, "int8")
    assert step.to_dict()["flops"] == step.flops == sum(op.flops for op in step.operations)
    assert step.operation("lm_head").flops == 2 * 80 * LLAMA.hidden_size * LLAMA.vocab_size


def test_decode_attention_intensity_is_the_group_size() -> None:
    for name in ("llama-2-7b", "llama-3-8b", "falcon-7b"):
        config = architecture(name)
        for batch in (1, 64):
            op = costs.step_costs(config, batch, 100_000).operation("attention_scores")
            assert op.intensity == pytest.approx(config.queries_per_kv_head, rel=2e-3)


@pytest.mark.parametrize(("rows", "expected"), [(8, 8.0), (128, 120.5), (512, 409.6)])
def test_intensity_of_a_linear_layer(rows: int, expected: float) -> None:
    assert costs.linear_costs(4096, 4096, rows).intensity == pytest.approx(expected, abs=0.05)


def test_without_a_cache_everything_is_computed_again() -> None:
    again = costs.step_costs(TINY, 2, 10, cached=False)
    prefill = costs.step_costs(TINY, 2, 10, 10)
    assert again.flops == prefill.flops
    assert again.positions == 20
    assert again.kv_read_bytes == again.kv_write_bytes == 0


@pytest.mark.parametrize(("batch", "context", "new"), [(0, 4, 1), (1, 4, 5), (1, 4, 0)])
def test_impossible_steps_are_refused(batch: int, context: int, new: int) -> None:
    with pytest.raises(ConfigError, match="needs batch >= 1"):
        costs.step_costs(TINY, batch, context, new)


def test_bad_words_are_refused() -> None:
    with pytest.raises(ConfigError, match="'last' or 'all'"):
        costs.step_costs(TINY, 1, 4, logits="first")
    with pytest.raises(DeviceError, match="float17"):
        costs.step_costs(TINY, 1, 4, dtype="float17")
    with pytest.raises(ConfigError, match="at least 1"):
        costs.positions_processed(0, 5, cached=True)
    with pytest.raises(ConfigError, match="qkv_proj"):
        costs.step_costs(TINY, 1, 4).operation("softmax")
