"""Cache write and attention of a decode step in one call, for caches that keep each head's rows together.

What `flash_attn_with_kvcache` is to a GPU: at small batches the launches of write, view and attention cost
more than what they do, and at long contexts each key and value is read once for all heads that share it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from labcore.kernels.native.build import functions

MAX_GROUP = 16  # query heads that share a KV head; as in attention.c
# A thread gets no fewer positions of one sequence than this: below it, merging costs more than it saves.
MIN_SPLIT = 256


class DecodeAttention:
    """Bound to the keys and values of one layer, fp32 on the CPU.

    The store of a contiguous cache, (2, B, h_kv, capacity, d), is one block a sequence; the pool of a paged
    one is (2, h_kv, num_blocks, block_size, d).
    """

    def __init__(self, store: Tensor, heads: int, *, paged: bool = False) -> None:
        self._store, self._paged = store, paged  # held: the kernel points into it
        keys, values = (store.transpose(1, 2) if paged else store).unbind()
        self._kv_heads, self._block, self._size = keys.shape[1:]
        self._strides = keys.stride()[:2]  # to the next block, to the next head
        self._heads, self._group = heads, heads // self._kv_heads
        self._keys, self._values = keys.data_ptr(), values.data_ptr()
        self._call = functions().labcore_decode_attention

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        lengths: Tensor,
        *,
        longest: int,
        tables: Tensor | None = None,
        starts: Tensor | None = None,
    ) -> Tensor:
        """Append k and v (B, h_kv, 1, d), then the attention of q (B, h, 1, d); returns its shape.

        lengths: (B,) int32, positions of each sequence with the new one; a row of length 0 takes no part.
        longest: the largest of them. tables: (B, max_blocks) int32, for a pool. starts: (B,) int32, the
        first position that is not padding.
        """
        batch, threads = q.shape[0], torch.get_num_threads()
        items = batch * self._kv_heads
        splits = max(1, min(-(-threads // items) if items < threads else 1, longest // MIN_SPLIT))
        out = torch.empty(batch, self._heads, 1, self._size)
        parts = torch.empty(items * splits * self._group * (self._size + 2))
        self._call(
            self._keys, self._values, _at(tables), lengths.data_ptr(), _at(starts),
            q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr(), parts.data_ptr(),
            batch, self._kv_heads, self._group, self._size, self._block,
            0 if tables is None else tables.shape[1], splits,
            *self._strides, q.stride(0), k.stride(0), v.stride(0), threads,
        )  # fmt: skip
        return out

    def takes(self, q: Tensor, k: Tensor, v: Tensor) -> bool:
        """Whether the kernel can read these: fp32, heads one behind the other, not too many to a group."""
        if self._group > MAX_GROUP:
            return False
        size = self._size
        return all(
            part.dtype == torch.float32 and part.stride(1) == size and part.stride(3) == 1
            for part in (q, k, v)
        )


def of_native_layer(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether these lie one behind the other, as the native layer's projection leaves them."""
    first, second, third = q.data_ptr(), k.data_ptr(), v.data_ptr()
    row = q.shape[-1] * q.element_size()
    return second - first == q.shape[1] * row and third - second == k.shape[1] * row


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
