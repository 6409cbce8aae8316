"""Costs of what is not a dense model over a contiguous cache: experts, latent attention, kinds of cache."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from labcore import cache as caches
from labcore.catalog import architecture, architectures
from labcore.config import ModelConfig
from labcore.errors import ConfigError
from labcore.kernels import reference
from labcore.perf import costs
from labcore.perf.costs import CacheTraffic
from labcore.perf.counting import count
from labcore.perf.layout import position_parameters
from labcore.perf.operations import _PASSES
from labcore.shapes import Experts, Latent

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 64}
TINY = ModelConfig(
    **SIZES, num_key_value_heads=2, head_dim=16, intermediate_size=48, max_position_embeddings=512
)
EXPERTS = Experts(num_local_experts=8, num_experts_per_tok=2, moe_intermediate_size=24)
LATENT = Latent(kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=12, v_head_dim=10, q_lora_rank=20)
MLA = ModelConfig(
    **SIZES,
    num_key_value_heads=4,
    head_dim=20,
    intermediate_size=48,
    max_position_embeddings=512,
    model_type="deepseek",
    latent=LATENT,
)
MOE = TINY.with_(model_type="mixtral", experts=EXPERTS)


def _theirs(kind: str) -> torch.nn.Module:
    """The same shapes as transformers builds them."""
    hf = pytest.importorskip("transformers")
    if kind == "mixtral":
        config = hf.MixtralConfig(
            **SIZES, num_key_value_heads=2, head_dim=16, intermediate_size=24, num_local_experts=8
        )
    else:
        config = hf.DeepseekV2Config(
            **SIZES,
            num_key_value_heads=4,
            intermediate_size=48,
            kv_lora_rank=16,
            q_lora_rank=20,
            qk_rope_head_dim=8,
            qk_nope_head_dim=12,
            v_head_dim=10,
            first_k_dense_replace=3,
        )
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    return hf.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize(("kind", "config"), [("mixtral", MOE), ("deepseek_v2", MLA)])
def test_flops_of_a_prompt_equal_transformers(kind: str, config: ModelConfig) -> None:
    model = _theirs(kind)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.randint(0, 64, (2, 9)), logits_to_keep=1)
    counts = counter.get_flop_counts()["Global"]
    assert sum(counts.values()) == costs.step_costs(config, 2, 9, 9).flops


@pytest.mark.parametrize(("kind", "config"), [("mixtral", MOE), ("deepseek_v2", MLA)])
def test_parameters_equal_transformers(kind: str, config: ModelConfig) -> None:
    assert costs.num_parameters(config) == sum(p.numel() for p in _theirs(kind).parameters())


def _absorbed(x: torch.Tensor, latents: torch.Tensor, w: dict[str, torch.Tensor]) -> torch.Tensor:
    """One layer's decode attention with the expanding matrices on the queries' and the outputs' side."""
    heads, nope, rank = 4, 12, 16
    q = (x @ w["qa"] @ w["qb"]).view(2, heads, 20)
    new = x @ w["kva"]
    held = torch.cat([latents, new[:, None]], dim=1)  # (B, T, rank + rope)
    up = w["kvb"].view(rank, heads, nope + 10)
    inward = torch.einsum("bhn,rhn->bhr", q[..., :nope], up[..., :nope])
    scores = torch.cat([inward, q[..., nope:]], dim=-1) @ held.transpose(1, 2)
    mixed = scores.softmax(-1) @ held[..., :rank]
    return torch.einsum("bhr,rhv->bhv", mixed, up[..., nope:]).reshape(2, -1) @ w["o"]


def _expanded(x: torch.Tensor, latents: torch.Tensor, w: dict[str, torch.Tensor]) -> torch.Tensor:
    q = (x @ w["qa"] @ w["qb"]).view(2, 4, 1, 20)
    held = torch.cat([latents, (x @ w["kva"])[:, None]], dim=1)
    keys, values = (held[..., :16] @ w["kvb"]).view(2, -1, 4, 22).transpose(1, 2).split((12, 10), dim=-1)
    keys = torch.cat([keys, held[:, None, :, 16:].expand(-1, 4, -1, -1)], dim=-1)
    return ((q @ keys.transpose(2, 3)).softmax(-1) @ values).reshape(2, -1) @ w["o"]


def test_absorbed_decode_of_latent_attention() -> None:
    shapes = {"qa": (32, 20), "qb": (20, 80), "kva": (32, 24), "kvb": (16, 88), "o": (40, 32)}
    weights = {name: torch.randn(shape) / 4 for name, shape in shapes.items()}
    x, latents = torch.randn(2, 32), torch.randn(2, 30, 24)
    with FlopCounterMode(display=False) as counter:
        out = _absorbed(x, latents, weights)
    torch.testing.assert_close(out, _expanded(x, latents, weights), atol=1e-4, rtol=1e-4)
    step = costs.step_costs(MLA, 2, 31)
    parts = ("q_proj", "kv_a_proj", "kv_b_proj", "attention_scores", "attention_values", "o_proj")
    assert counter.get_total_flops() == sum(step.operation(name).flops for name in parts) / 3  # of 3 layers
    assert step.kv_read_bytes == 2 * 31 * costs.kv_bytes_per_token(MLA)
    assert step.kv_write_bytes == 2 * costs.kv_bytes_per_token(MLA)


@pytest.mark.parametrize("name", architectures())
def test_a_long_step_reads_every_weight(name: str) -> None:
    config = architecture(name)
    tokens = 100_000
    step = costs.step_costs(config, tokens, 1)
    table = 2 * config.vocab_size * config.hidden_size
    looked_up = step.operation("embed").weight_bytes
    held = costs.weight_bytes(config) + (table if config.tie_word_embeddings else 0)
    unread = held - (step.weight_bytes - looked_up + table)
    # A step looks up its own rows of a table of learnt positions; the table itself is not read through.
    assert unread == pytest.approx(2 * position_parameters(config), abs=held * 1e-6)


def test_one_token_reads_its_own_experts() -> None:
    config = architecture("mixtral-8x7b")
    step = costs.step_costs(config, 1, 1024)
    table = 2 * config.vocab_size * config.hidden_size
    active = 2 * costs.num_parameters(config, active=True) - table + 2 * config.hidden_size
    assert step.weight_bytes == pytest.approx(active, rel=1e-9)
    assert costs.experts_touched(EXPERTS, 1) == pytest.approx(2)
    drawn = torch.stack([torch.rand(20_000, 8).topk(2).indices for _ in range(5)], dim=1).flatten(1)
    seen = torch.zeros(20_000, 8).scatter_(1, drawn, 1.0).sum(1).mean()
    assert costs.experts_touched(EXPERTS, 5) == pytest.approx(float(seen), abs=0.03)


def test_weights_of_few_bits_leave_the_head_alone() -> None:
    whole = costs.step_costs(TINY, 1, 9)
    packed = costs.step_costs(TINY, 1, 9, weight_bits=4.125)
    for name in ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"):
        ratio = packed.operation(name).weight_bytes / whole.operation(name).weight_bytes
        assert ratio == pytest.approx(4.125 / 16, rel=1e-3)
    assert packed.operation("lm_head") == whole.operation("lm_head")
    with pytest.raises(ConfigError, match="-1 bits"):
        costs.step_costs(TINY, 1, 9, weight_bits=-1)


HELD = 40  # positions that the caches below hold when a step comes
SPECS = {
    "contiguous": CacheTraffic(),
    "none": CacheTraffic(recomputes=True),
    "growing": CacheTraffic(copies=True),
    "sliding_window:window=16": CacheTraffic(kept=16),
    "sinks:sinks=4,window=12": CacheTraffic(kept=16),
    "heavy_hitters:budget=16": CacheTraffic(kept=17, scores=True),
    "int8": CacheTraffic(bits=9, unpacks=True),
    "kivi2": CacheTraffic(bits=3, unpacks=True),
    "offloaded": CacheTraffic(host=True),
    "paged:block_size=8": CacheTraffic(block_size=8),
    "prefix:block_size=8": CacheTraffic(block_size=8),
}


@pytest.mark.parametrize("spec", SPECS)
def test_every_kind_of_cache_states_its_traffic(spec: str) -> None:
    config = TINY.with_(head_dim=32)
    traffic = caches.traffic_of(spec, config)
    assert traffic == SPECS[spec]
    step = costs.step_costs(config, 2, HELD + 1, dtype="float32", traffic=traffic)
    seen = min(HELD + 1, traffic.kept or math.inf)
    width = config.num_attention_heads * config.head_dim
    new = HELD + 1 if traffic.recomputes else 1
    assert step.operation("attention_scores").flops == 2 * 2 * 3 * width * new * seen
    per_token = costs.kv_bytes_per_token(config, "float32")
    if traffic.copies:
        assert step.operation("kv_copy").kv_bytes == 2 * (2 * (HELD + 1) - 1) * per_token
    if traffic.host:
        assert step.host_bytes == 2 * HELD * per_token
    if traffic.unpacks:
        assert step.operation("kv_unpack").kv_bytes == 2 * (HELD + 1) * per_token * traffic.bits / 32


def test_a_growing_cache_copies_what_is_counted() -> None:
    cache = caches.create("growing", TINY, batch_size=2)
    one = torch.zeros(2, 2, 1, 16)
    for held in range(5):
        before = cache.copied_bytes
        cache.begin(1)
        for layer in range(3):
            cache.attend(layer, torch.zeros(2, 4, 1, 16), one, one)
        cache.commit()
        # the cache counts what was held and is written anew; the cost model also that it is read
        assert cache.copied_bytes - before == 2 * held * costs.kv_bytes_per_token(TINY, "float32")


def test_windowed_layers_see_their_window() -> None:
    gemma = architecture("gemma-3-1b")
    step = costs.step_costs(gemma, 1, 8192)
    full = gemma.num_hidden_layers - gemma.windowed_layers
    keys = full * 8192 + gemma.windowed_layers * 512
    assert step.kv_read_bytes == 2 * 2 * keys * gemma.num_key_value_heads * gemma.head_dim
    assert step.kv_read_bytes == costs.kv_bytes(gemma, 8192)


def test_unfused_operations_move_what_plain_operators_do() -> None:
    """The reference's operators, counted on real tensors, one kind of operation at a time."""
    rows, heads, size, hidden, inner = 37, 4, 16, 64, 96
    x, gate_up = torch.randn(rows, hidden), torch.randn(rows, 2 * inner)
    qk = torch.randn(1, heads, rows, size)
    cos = sin = torch.randn(1, 1, rows, size)
    norm = count(lambda: reference.rms_norm(x, torch.ones(hidden), 1e-6)).bytes
    rope = count(lambda: reference.apply_rope(qk, cos, sin)).bytes
    gated = count(lambda: reference.swiglu(gate_up)).bytes
    # Each counts its passes over its numbers; beside them are means, scales and angles, small here.
    assert norm == pytest.approx(_PASSES["norm"] * x.nbytes, rel=0.06)
    assert rope == pytest.approx(_PASSES["rope"] * qk.nbytes, rel=0.12)
    assert gated == pytest.approx(_PASSES["gated"] * 4 * rows * inner, rel=0.01)


@pytest.mark.parametrize("new", [1, 40])
def test_unfused_attention_moves_its_scores(new: int) -> None:
    config = TINY.with_(num_key_value_heads=4, num_hidden_layers=1, head_dim=4)
    batch, context = 2, 300 if new == 1 else 40
    q = torch.randn(batch, 4, new, 4)
    k = v = torch.randn(batch, 4, context, 4)
    moved = count(lambda: reference.attention(q, k, v, causal=new > 1)).bytes
    apart, fused = (
        costs.step_costs(config, batch, context, new, dtype="float32", fused=fused) for fused in (False, True)
    )
    names = ("attention_scores", "attention_values")
    scores = 4 * batch * 4 * new * context
    extra = sum(apart.operation(name).bytes - fused.operation(name).bytes for name in names)
    assert extra == (8 if new > 1 else 6) * scores
    assert sum(apart.operation(name).bytes for name in names) == pytest.approx(moved, rel=0.15)
    assert apart.flops == fused.flops
    assert apart.bytes > fused.bytes
