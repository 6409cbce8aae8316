"""Cache write and attention of a decode step in one call, for caches that keep each head's rows together.

What `flash_attn_with_kvcache` is to a GPU: at small batches the launches of write, view and attention cost
more than what they do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from labcore.kernels.native.build import functions

# Over more keys PyTorch's attention, which computes in tiles, is faster than two passes over them.
MAX_KEYS = 256


class DecodeAttention:
    """Bound to the store of one layer: (2, B, h_kv, capacity, d) fp32 on the CPU, keys and then values."""

    def __init__(self, store: Tensor, heads: int) -> None:
        self._store = store
        _, self._batch, self._kv_heads, self._capacity, self._size = store.shape
        self._heads, self._group = heads, heads // self._kv_heads
        self._keys, self._values = (part.data_ptr() for part in store.unbind())
        self._call = functions().labcore_append_and_attend

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, held: int) -> Tensor:
        """Append k and v (B, h_kv, 1, d) behind `held` positions; attention of q (B, h, 1, d), same shape.

        q, k and v are views of one tensor (B, h + 2 h_kv, 1, d), as the layer's projection makes them.
        """
        out = torch.empty(self._batch, self._heads, 1, self._size)
        scratch = torch.empty(self._batch * self._heads * (held + 1))
        pointers = (tensor.data_ptr() for tensor in (q, k, v, out, scratch))
        self._call(
            self._keys, self._values, *pointers, self._batch, self._kv_heads, self._group, held,
            self._capacity, self._size, q.stride(0), torch.get_num_threads(),
        )  # fmt: skip
        return out

    def takes(self, q: Tensor, k: Tensor, v: Tensor, held: int) -> bool:
        """Whether these are parts of one projection, as the native layer makes them, and few enough."""
        row = self._size * 4
        first, second, third = q.data_ptr(), k.data_ptr(), v.data_ptr()
        beside = second - first == self._heads * row and third - second == self._kv_heads * row
        return beside and held < MAX_KEYS and q.dtype == torch.float32
