"""Attention of a few or many queries over keys and values, without ever repeating the shared heads.

With grouped queries (GQA), `h / h_kv` query heads read the same keys. Repeating the keys would read and write
the cache several times over, which is what GQA was made to avoid; here the *queries* are regrouped instead.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from labcore.kernels.native import prompt_attention as native


def attention(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """softmax(q kᵀ / sqrt(d)) v, each group of query heads over its shared key/value head.

    q: (B, h, n, d); k, v: (B, h_kv, T, d) with h a multiple of h_kv. mask: bool, (B or 1, 1, n, T), True
    where a query may look; `causal` instead of a mask where the queries are the last n of T positions, so
    that query i sees keys 0 to T - n + i.
    Returns (B, h, n, d).
    """
    if q.shape[2] == 1:
        return _one_query(q, k, v, mask)
    if causal and native.takes(q, k, v):
        return native.prompt_attention(q, k, v)
    if causal and k.shape[2] > q.shape[2]:
        mask, causal = _behind(q.shape[2], k.shape[2], q.device), False
    return _many_queries(q, k, v, mask, causal)


def _behind(queries: int, keys: int, device: torch.device) -> Tensor:
    """(1, 1, n, T): the mask of queries behind a history."""
    ones = torch.ones(queries, keys, dtype=torch.bool, device=device)
    return ones.tril(keys - queries)[None, None]


def _one_query(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Decode: a group's h / h_kv single queries become the rows of one small matrix over the same keys."""
    batch, heads, _, size = q.shape
    grouped = q.reshape(batch, k.shape[1], heads // k.shape[1], size)
    return F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask).reshape(batch, heads, 1, size)


def _many_queries(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Prefill: fold (B, h_kv) into the batch; the group's heads see the keys through a stride of zero."""
    batch, heads, n, size = q.shape
    kv_heads, group = k.shape[1], heads // k.shape[1]
    folded = (batch * kv_heads, group)
    if mask is not None and mask.shape[0] > 1:
        mask = mask.expand(batch, kv_heads, n, -1).reshape(batch * kv_heads, 1, n, -1)
    out = F.scaled_dot_product_attention(
        q.reshape(*folded, n, size),
        k.reshape(folded[0], 1, -1, size).expand(*folded, -1, -1),
        v.reshape(folded[0], 1, -1, size).expand(*folded, -1, -1),
        attn_mask=mask,
        is_causal=causal,
    )
    return out.reshape(batch, heads, n, size)
