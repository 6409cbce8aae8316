"""A Transformer from parts that come in several formats: what GPTQ, AWQ and GGUF checkpoints hold.

A part is one matrix of the checkpoint. Our fused matrices are made of two or three: in one piece where their
formats agree, side by side where they do not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from labcore.config import ModelConfig
from labcore.errors import CheckpointError
from labcore.model import weights
from labcore.quant import choice
from labcore.quant.formats import QuantizedTensor
from labcore.quant.linear import QuantEmbedding, QuantLinear, Stacked

if TYPE_CHECKING:
    from labcore.model.transformer import Transformer


@dataclass(frozen=True)
class Part:
    """One matrix or vector of a checkpoint; order: of the inputs that the codes stand in."""

    weight: Tensor | QuantizedTensor
    bias: Tensor | None = None
    order: Tensor | None = None


Parts = Callable[[str], Part | None]  # by Hugging Face's module name, such as "model.layers.0.mlp.up_proj"


def assemble(
    transformer: Transformer, config: ModelConfig, parts: Parts, device: torch.device, dtype: torch.dtype
) -> None:
    """Fill a skeleton. Raises CheckpointError where a part is missing or of another shape."""
    for ours, names in _homes(config).items():
        old = transformer.get_submodule(ours) if _has(transformer, ours) else None
        if old is None or (ours == "lm_head" and config.tie_word_embeddings):
            continue
        found = [_need(parts, name) for name in names]
        _check(names, found, old)
        home, _, leaf = ours.rpartition(".")
        if ours == "embed_tokens":
            _embed(transformer, found[0], dtype, config.tie_word_embeddings)
        elif isinstance(old, nn.Linear):
            setattr(transformer.get_submodule(home), leaf, _linear(found, dtype))
        else:
            old.weight = _parameter(_dense(found[0]), dtype)
    transformer.tie()
    transformer.reset_rope()
    transformer.to(device)
    transformer.tie()
    transformer.requires_grad_(False)
    choice.prepare(device)


def _homes(config: ModelConfig) -> dict[str, list[str]]:
    """Our modules, and the checkpoint's that each is made of, in order."""
    found = {ours: [theirs] for theirs, (ours, _) in weights.MODEL_TABLE.items()}
    for layer in range(config.num_hidden_layers):
        for theirs, (ours, _) in weights.LAYER_TABLE.items():
            found.setdefault(f"layers.{layer}.{ours}", []).append(f"model.layers.{layer}.{theirs}")
    return found


def _has(transformer: nn.Module, path: str) -> bool:
    """Norms of queries and keys exist in some families only."""
    home, _, leaf = path.rpartition(".")
    return getattr(transformer.get_submodule(home), leaf, None) is not None


def _need(parts: Parts, name: str) -> Part:
    if (found := parts(name)) is None:
        raise CheckpointError(
            f"The checkpoint lacks {name}, which its configuration asks for; fetch the whole of it."
        )
    return found


def _check(names: list[str], found: list[Part], old: nn.Module) -> None:
    shapes = [tuple(part.weight.shape) for part in found]
    rows, rest = sum(shape[0] for shape in shapes), {shape[1:] for shape in shapes}
    wanted = tuple(old.weight.shape)  # type: ignore[arg-type]
    if rest != {wanted[1:]} or rows != wanted[0]:
        raise CheckpointError(
            f"{names[0]} has shape {list(shapes[0])} in the checkpoint, which does not fit the "
            f"{list(wanted)} that its configuration asks for; they belong to different models."
        )


def _embed(transformer: Transformer, part: Part, dtype: torch.dtype, tied: bool) -> None:
    if isinstance(part.weight, Tensor):
        transformer.embed_tokens.weight = _parameter(part.weight, dtype)
        return
    holder = QuantLinear(part.weight)
    if tied:
        transformer.lm_head = holder  # type: ignore[assignment]
    transformer.embed_tokens = QuantEmbedding(holder, dtype, owned=not tied)  # type: ignore[assignment]


def _linear(parts: list[Part], dtype: torch.dtype) -> nn.Module:
    """One layer where the parts can be put in one, else one beside the other."""
    if (whole := _joined(parts)) is not None:
        return _layer(whole, dtype)
    return Stacked([_layer(part, dtype) for part in parts])


def _layer(part: Part, dtype: torch.dtype) -> nn.Module:
    bias = None if part.bias is None else part.bias.to(dtype)
    if isinstance(part.weight, QuantizedTensor):
        return QuantLinear(part.weight, bias, order=part.order)
    rows, columns = part.weight.shape
    made = nn.Linear(columns, rows, bias=bias is not None, device="meta")
    made.weight = _parameter(part.weight, dtype)
    if bias is not None:
        made.bias = _parameter(bias, dtype)
    return made


def _joined(parts: list[Part]) -> Part | None:
    """Rows below rows; None where formats, kinds of zero point, biases or orders differ."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if len({part.bias is None for part in parts}) > 1 or not all(_same(first.order, p.order) for p in parts):
        return None
    bias = None if first.bias is None else torch.cat([p.bias for p in parts if p.bias is not None])
    dense = [p.weight for p in parts if isinstance(p.weight, Tensor)]
    if len(dense) == len(parts):
        return Part(torch.cat(dense), bias)
    codes = [p.weight for p in parts if isinstance(p.weight, QuantizedTensor)]
    kinds = {(c.format, tuple((n, t.dtype) for n, t in c.tensors().items())) for c in codes}
    if len(codes) < len(parts) or len(kinds) > 1:
        return None
    joined = {name: torch.cat([c.tensors()[name] for c in codes]) for name in codes[0].tensors()}
    shape = (sum(c.shape[0] for c in codes), codes[0].shape[1])
    return Part(replace(codes[0], shape=shape, **joined), bias, first.order)  # type: ignore[arg-type]


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


def _dense(part: Part) -> Tensor:
    return part.weight if isinstance(part.weight, Tensor) else part.weight.dequantize()


def _parameter(tensor: Tensor, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(tensor.to(dtype).contiguous(), requires_grad=False)
