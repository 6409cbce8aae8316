"""A decode step as tensor operations of unchanging shape: what a compiler or a CUDA graph can take whole.

The readable step asks its cache, in Python, where to write and how far to read. Here both are tensors: keys
and values go to a position that is read from memory, and attention spans a *bucket* of positions, those not
yet written masked out. So the step of position 70 is the very same program as the step of position 71.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from labcore import kernels
from labcore.cache import ContiguousCache
from labcore.model.transformer import Transformer

SHORTEST = 64  # positions of the smallest bucket
# Up to so many rows a product with a weight matrix is bound by reading it. Generated loops read it with all
# cores and take the operations around it along; the libraries' matrix-vector product stays on one core.
FEW_ROWS = 4


class LayerSlot:
    """One layer's part of the cache, for one position."""

    def __init__(self, store: Tensor, position: Tensor, mask: Tensor) -> None:
        self.store, self.position, self.mask = store, position, mask

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write k and v (B, h_kv, 1, d) at the position; attention of q (B, h, 1, d) over the bucket."""
        # One write into the whole store: a write through views of it would tie the program to its capacity.
        self.store.index_copy_(3, self.position, torch.stack((k, v)))
        kept = self.store.narrow(3, 0, self.mask.shape[-1])  # (2, B, h_kv, T, d)
        return kernels.attention(q, kept[0], kept[1], mask=self.mask)


class GeneratedProducts(TorchFunctionMode):
    """While a step is traced for a CPU, write its matrix-vector products as loops that the compiler fuses."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and args[0].device.type == "cpu" and args[0].shape[0] <= FEW_ROWS:
            return _product(*args, **kwargs)
        return func(*args, **kwargs)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(B, 1, in) x (out, in) -> (B, 1, out)."""
    out = (x.unsqueeze(-2) * weight).sum(-1)
    return out if bias is None else out + bias


def opening(
    transformer: Transformer, tokens: Tensor, position: Tensor, padding: Tensor, span: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Embeddings (B, 1, hidden), cos and sin of the rotary position, and the mask (B, 1, 1, T)."""
    x = transformer.embed_tokens(tokens)
    cos, sin = transformer.rope((position - padding)[:, None].clamp_min(0), x.dtype)
    visible = (span <= position) & (span >= padding[:, None])
    return x, cos, sin, visible[:, None, None]


def through(
    blocks: Iterable[nn.Module],
    stores: Iterable[Tensor],
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    position: Tensor,
    mask: Tensor,
) -> Tensor:
    """(B, 1, hidden) through some layers -> (B, 1, hidden)."""
    for block, store in zip(blocks, stores, strict=True):
        x = block(x, cos, sin, LayerSlot(store, position, mask))
    return x


def closing(transformer: Transformer, x: Tensor) -> Tensor:
    """(B, 1, hidden) -> logits (B, vocab) fp32."""
    logits: Tensor = transformer.lm_head(transformer.norm(x))[:, -1]
    return logits.float()


def whole(
    transformer: Transformer,
    tokens: Tensor,
    position: Tensor,
    padding: Tensor,
    span: Tensor,
    stores: Sequence[Tensor],
) -> Tensor:
    """One decode step -> logits (B, vocab) fp32.

    tokens: (B, 1), padding: (B,), position where the tokens stand: (1,), span: (T,) = 0 .. T - 1; all int64.
    stores: each layer's (2, B, h_kv, capacity, d), capacity >= T; positions never written must hold numbers.
    """
    x, cos, sin, mask = opening(transformer, tokens, position, padding, span)
    return closing(transformer, through(transformer.layers, stores, x, cos, sin, position, mask))


class StepInputs:
    """The tensors that a static step reads, always the same ones: a CUDA graph knows their addresses."""

    def __init__(self, batch: int, device: torch.device) -> None:
        # Made as ordinary tensors even where the caller infers: a compiler tells the two kinds apart.
        with torch.inference_mode(False):
            self.tokens = torch.zeros(batch, 1, dtype=torch.int64, device=device)
            self.position = torch.zeros(1, dtype=torch.int64, device=device)
            self.padding = torch.zeros(batch, dtype=torch.int64, device=device)

    def fill(self, tokens: Tensor, cache: ContiguousCache) -> None:
        """Take the (B, 1) tokens that come next in the cache."""
        self.tokens.copy_(tokens)
        self.position.fill_(cache.length)
        self.padding.zero_() if cache.padding is None else self.padding.copy_(cache.padding)


def span_of(positions: int, device: torch.device) -> Tensor:
    """0 .. positions - 1 as (positions,) int64."""
    with torch.inference_mode(False):
        return torch.arange(positions, device=device)


def clear_ahead(cache: ContiguousCache, bucket: int) -> None:
    """Zero what a bucket spans beyond the positions held: even masked, a NaN left there would spoil all."""
    for store in cache.store:
        store[:, :, :, cache.length : bucket] = 0
