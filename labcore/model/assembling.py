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


Parts = Callable[[str], Part]  # by Hugging Face's module name, such as "model.layers.0.mlp.up_proj"


def assemble(
    transformer: Transformer, config: ModelConfig, parts: Parts, device: torch.device, dtype: torch.dtype
) -> None:
    """Fill a skeleton from a checkpoint that `ensure_complete` let through; no file of it stays mapped.

    Raises CheckpointError where a part is of another shape than the configuration asks for.
    """
    shapes = weights.shapes(config, transformer)
    for ours, names in _homes(config).items():
        old = transformer.get_submodule(ours) if _has(transformer, ours) else None
        if old is None or (ours == "lm_head" and config.tie_word_embeddings):
            continue
        collected = [_checked(parts(name), name, shapes) for name in names]
        home, _, leaf = ours.rpartition(".")
        if ours == "embed_tokens":
            _embed(transformer, collected[0], dtype, config.tie_word_embeddings)
        elif isinstance(old, nn.Linear):
            setattr(transformer.get_submodule(home), leaf, _linear(collected, dtype))
        else:
            old.weight = _parameter(_dense(collected[0]), dtype)
    settle(transformer, device)


def settle(transformer: Transformer, device: torch.device) -> None:
    """What every model needs once its parts are in: one head, frequencies, its device, no gradients."""
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


def _checked(part: Part, name: str, shapes: dict[str, tuple[int, ...]]) -> Part:
    for leaf, tensor in (("weight", part.weight), ("bias", part.bias)):
        shape, wanted = None if tensor is None else tuple(tensor.shape), shapes.get(f"{name}.{leaf}")
        if shape != wanted:
            raise CheckpointError(
                f"{name}.{leaf} has shape {_shown(shape)} in the checkpoint, and its configuration asks for "
                f"{_shown(wanted)}; they belong to different models."
            )
    return part


def _shown(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else str(list(shape))


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
    # a copy in any case: the tensor may be mapped from a file, which can be cut short while the model serves
    owned = tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)
    return nn.Parameter(owned, requires_grad=False)
