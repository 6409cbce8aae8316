"""Plain causal attention for training, behind the calls that the Transformer makes of a cache.

Nothing is kept: `attend` mixes the row's own values. On a CPU, batched products and a softmax in bf16, over
blocks of queries and the keys that these may see, are several times faster than the fused kernel, backward
included.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK = 128


class CausalAttention:
    """Attention of every position over itself and what came before it in the row."""

    def __init__(self, length: int, group: int, device: torch.device, dtype: torch.dtype) -> None:
        """length: tokens in a row; group: query heads per key/value head."""
        self.positions = torch.arange(length, device=device)[None]
        self.by_blocks = device.type == "cpu"
        hidden = torch.full((length, length), -1e4, device=device, dtype=dtype).triu(1)
        # Added to the scores of a block's queries, all heads of a group under each other.
        self.masks = [
            hidden[start : start + _BLOCK, : start + _BLOCK].repeat(group, 1)
            for start in range(0, length, _BLOCK)
        ]

    packed = False  # no C kernel attends over rows that are learnt from

    def begin(self, n: int) -> Tensor:
        """(1, n): the positions of the row."""
        return self.positions

    def native_step(self) -> None:
        """Nothing that a C kernel could read."""

    def commit(self) -> None:
        """Nothing to keep."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q: (B, h, n, d); k, v: (B, h_kv, n, d) -> (B, h, n, d)."""
        if not self.by_blocks:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        batch, heads, n, size = q.shape
        folded = batch * k.shape[1]
        q, k, v = q.reshape(folded, -1, n, size), k.reshape(folded, n, size), v.reshape(folded, n, size)
        out = [self._block(q, k, v, number) for number in range(len(self.masks))]
        return torch.cat(out, dim=2).reshape(batch, heads, n, size)

    def _block(self, q: Tensor, k: Tensor, v: Tensor, number: int) -> Tensor:
        """(folded, group, block, d): one block of queries over the keys up to its end."""
        start, mask = number * _BLOCK, self.masks[number]
        end = mask.shape[1]
        queries = q[:, :, start:end].reshape(len(q), -1, q.shape[-1])
        scores = torch.baddbmm(
            mask.expand(len(q), -1, -1),
            queries,
            k[:, :end].transpose(-1, -2),
            alpha=1 / math.sqrt(q.shape[-1]),
        )
        mixed = torch.bmm(scores.softmax(-1), v[:, :end])
        return mixed.reshape(len(q), q.shape[1], end - start, q.shape[-1])
