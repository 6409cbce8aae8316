"""Tensor parallelism of the one Transformer (Shoeybi et al. 2019, Megatron-LM).

Each rank holds some of the heads and some of the feed-forward width. Queries, keys, values, gate and up are
cut by columns, so that a rank computes its own heads from start to end; the output and down projections are
cut by rows, so that what the ranks hold are parts of a sum, and one all-reduce after each adds them up: two a
layer. The head is cut by vocabulary and its logits are gathered. Embedding and norms are on every rank.

A rank's `Model` has the configuration of its part, so any cache made for it holds its KV heads alone.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from labcore.config import ModelConfig
from labcore.errors import ConfigError
from labcore.model import Model, Transformer
from labcore.parallel.collectives import all_gather_last, all_reduce


class RowParallelLinear(nn.Module):
    """A linear layer whose inputs are spread over the ranks; its outputs are summed over them."""

    def __init__(self, weight: Tensor, bias: Tensor | None, group: dist.ProcessGroup | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs / ranks) -> (..., outputs). The bias is added once, to the sum."""
        out = all_reduce(nn.functional.linear(x, self.weight), self.group)
        return out if self.bias is None else out + self.bias


class VocabParallelLinear(nn.Module):
    """The head: every rank has the rows of its part of the vocabulary; logits are gathered."""

    def __init__(self, weight: Tensor, sizes: list[int], group: dist.ProcessGroup | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.sizes, self.group = sizes, group

    def forward(self, x: Tensor) -> Tensor:
        """(..., hidden) -> (..., vocab) on every rank."""
        return all_gather_last(nn.functional.linear(x, self.weight), self.sizes, self.group)


def shard(model: Model, group: dist.ProcessGroup | None = None) -> Model:
    """This rank's part of a model, its weights copied so that the whole can be let go.

    Called by every rank of the group (default: all processes) with the same model. Generates, with any cache,
    what the whole model would; every rank gets the same logits. It takes the readable path, whose layers have
    a place for the all-reduce. Raises ConfigError where heads or widths do not divide by the number of ranks.
    """
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    config = shard_config(model.config, ranks)
    with torch.device("meta"):
        part = Transformer(config)
    part.to_empty(device=model.device).to(model.dtype)
    whole = model.transformer
    part.embed_tokens.weight = _parameter(whole.embed_tokens.weight)
    part.norm.weight = _parameter(whole.norm.weight)
    sizes = [len(chunk) for chunk in torch.arange(config.vocab_size).tensor_split(ranks)]
    rows = whole.lm_head.weight.tensor_split(ranks)[rank]
    part.lm_head = VocabParallelLinear(rows.detach().clone(), sizes, group)  # type: ignore[assignment]
    for mine, full in zip(part.layers, whole.layers, strict=True):
        _shard_layer(mine, full, model.config, rank, ranks, group)
    part.rope.reset(model.device)
    part.fast = False
    part.eval().requires_grad_(False)
    return Model(model.name, config, part, model.tokenizer, model.random_weights)


def shard_config(config: ModelConfig, ranks: int) -> ModelConfig:
    """The configuration of one rank's part. Raises ConfigError where something does not divide."""
    counts = {
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "intermediate_size": config.intermediate_size,
    }
    for name, count in counts.items():
        if count % ranks:
            could = [n for n in range(1, count + 1) if all(c % n == 0 for c in counts.values())]
            raise ConfigError(
                f"{name} is {count}, which {ranks} ranks cannot share evenly; this model can be split over "
                f"{', '.join(map(str, could))}."
            )
    return config.with_(**{name: count // ranks for name, count in counts.items()})


def _shard_layer(
    mine: nn.Module, full: nn.Module, config: ModelConfig, rank: int, ranks: int,
    group: dist.ProcessGroup | None,
) -> None:  # fmt: skip
    """Fill one layer of a part. Both are `Block`s; the parts of fused matrices are cut one by one."""
    heads = config.num_attention_heads * config.head_dim
    kv_heads = config.num_key_value_heads * config.head_dim
    _columns(mine.attention.qkv_proj, full.attention.qkv_proj, (heads, kv_heads, kv_heads), rank, ranks)  # type: ignore
    half = config.intermediate_size
    _columns(mine.mlp.gate_up_proj, full.mlp.gate_up_proj, (half, half), rank, ranks)  # type: ignore
    mine.attention.o_proj = _rows(full.attention.o_proj, rank, ranks, group)  # type: ignore
    mine.mlp.down_proj = _rows(full.mlp.down_proj, rank, ranks, group)  # type: ignore
    for name in ("input_norm", "post_norm"):
        getattr(mine, name).weight = _parameter(getattr(full, name).weight)
    for name in ("q_norm", "k_norm"):
        if (norm := getattr(full.attention, name)) is not None:
            getattr(mine.attention, name).weight = _parameter(norm.weight)


def _columns(mine: nn.Linear, full: nn.Linear, parts: tuple[int, ...], rank: int, ranks: int) -> None:
    """This rank's output rows of every part of a fused matrix, and of its bias."""

    def own(tensor: Tensor) -> nn.Parameter:
        return _parameter(torch.cat([part.chunk(ranks)[rank] for part in tensor.split(parts)]))

    mine.weight = own(full.weight)
    if full.bias is not None:
        mine.bias = own(full.bias)


def _rows(full: nn.Linear, rank: int, ranks: int, group: dist.ProcessGroup | None) -> RowParallelLinear:
    bias = None if full.bias is None else full.bias.detach().clone()
    return RowParallelLinear(full.weight.detach().chunk(ranks, dim=1)[rank].clone(), bias, group)


def _parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().clone(), requires_grad=False)
