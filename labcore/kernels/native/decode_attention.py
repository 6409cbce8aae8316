"""Cache write and attention of a decode step in C, for caches that keep each head's rows together.

What `flash_attn_with_kvcache` is to a GPU: at small batches the launches of write, view and attention cost
more than what they do, and at long contexts each key and value is read once for all heads that share it.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from labcore.kernels.native.build import fp32, functions, library

MAX_GROUP = 16  # query heads that share a KV head; as in attention.c
# A thread gets no fewer positions of one sequence than this: below it, merging costs more than it saves.
MIN_SPLIT = 128


class Attention(ctypes.Structure):
    """attention_t."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("keys", "values", "tables", "sequences", "lengths", "starts")),
        *((name, ctypes.c_void_p) for name in ("q", "new_k", "new_v", "out", "parts")),
        *((name, ctypes.c_int) for name in ("tokens", "kv_heads", "group", "d")),
        *((name, ctypes.c_int) for name in ("block_size", "max_blocks", "splits")),
        *((name, ctypes.c_long) for name in ("block_stride", "head_stride")),
        *((name, ctypes.c_long) for name in ("q_stride", "k_stride", "v_stride")),
    ]


@dataclass(frozen=True)
class NewTokens:
    """The new tokens of a step, as its attention sees them; the same in all layers.

    lengths: (tokens,) int32, positions of each one's sequence up to itself; a token of length 0 takes no
    part. longest: the largest of them. tables: (sequences, max_blocks) int32, for a pool. starts:
    (sequences,) int32, the first position that is not padding. sequences: (tokens,) int32, which each belongs
    to, where that is not one token each.
    """

    lengths: Tensor
    longest: int
    tables: Tensor | None = None
    starts: Tensor | None = None
    sequences: Tensor | None = None


class KVMemory:
    """Where all layers' keys and values lie, fp32 on the CPU: what the C functions are bound to.

    The stores of a contiguous cache, (2, B, h_kv, capacity, d), are one block a sequence; the pools of a
    paged one are (2, h_kv, num_blocks, block_size, d).
    """

    def __init__(self, stores: Sequence[Tensor], heads: int, *, paged: bool = False) -> None:
        self._stores = list(stores)  # held: the kernel points into them
        parts = [(store.transpose(1, 2) if paged else store).unbind() for store in self._stores]
        first, _ = parts[0]
        self._kv_heads, self._block, self._size = first.shape[1:]
        self._strides = first.stride()[:2]  # to the next block, to the next head
        self.heads, self._group = heads, heads // self._kv_heads
        pointers = ctypes.c_void_p * len(parts)
        self.keys = pointers(*(keys.data_ptr() for keys, _ in parts))
        self.values = pointers(*(values.data_ptr() for _, values in parts))
        self._call = functions().labcore_decode_attention

    @classmethod
    def bind(cls, stores: Sequence[Tensor], heads: int, *, paged: bool = False) -> KVMemory | None:
        """None where the kernels do not run on these: another device or dtype, too many heads to a group, no
        kernels."""
        store = stores[0]
        fits = store.device.type == "cpu" and store.dtype == torch.float32
        kv_heads = store.shape[1 if paged else 2]
        if not fits or heads // kv_heads > MAX_GROUP or library() is None:
            return None
        return cls(stores, heads, paged=paged)

    def splits(self, new: NewTokens, threads: int) -> int:
        """Parts of a sequence that are attended to apart, so that every thread has as much to do."""
        items = len(new.lengths) * self._kv_heads
        even = threads // math.gcd(items, threads) if items < 4 * threads else 1
        return max(1, min(even, new.longest // MIN_SPLIT))

    def parts(self, new: NewTokens, splits: int) -> int:
        """Floats that the parts take until they are merged."""
        return len(new.lengths) * self.heads * splits * (self._size + 2)

    def describe(self, new: NewTokens, splits: int) -> Attention:
        """The step without its layer, queries, keys and values."""
        made = Attention(
            tables=_at(new.tables), sequences=_at(new.sequences), lengths=new.lengths.data_ptr(),
            starts=_at(new.starts), tokens=len(new.lengths), kv_heads=self._kv_heads, group=self._group,
            d=self._size, block_size=self._block, splits=splits,
        )  # fmt: skip
        made.max_blocks = 0 if new.tables is None else new.tables.shape[1]
        made.block_stride, made.head_stride = self._strides
        return made

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, new: NewTokens) -> Tensor:
        """Append k and v (tokens, h_kv, 1, d), then the attention of q (tokens, h, 1, d); its shape."""
        threads = torch.get_num_threads()
        splits = self.splits(new, threads)
        out = fp32(q.shape[0], self.heads, 1, self._size)
        parts = fp32(self.parts(new, splits))
        step = self.describe(new, splits)
        step.keys, step.values = self.keys[layer], self.values[layer]
        step.q, step.new_k, step.new_v = q.data_ptr(), k.data_ptr(), v.data_ptr()
        step.q_stride, step.k_stride, step.v_stride = q.stride(0), k.stride(0), v.stride(0)
        step.out, step.parts = out.data_ptr(), parts.data_ptr()
        self._call(ctypes.byref(step), threads)
        return out

    def takes(self, q: Tensor, k: Tensor, v: Tensor) -> bool:
        """Whether the kernel can read these: fp32, heads one behind the other."""
        return all(
            part.dtype == torch.float32 and part.stride(1) == self._size and part.stride(3) == 1
            for part in (q, k, v)
        )


def of_native_layer(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether these lie one behind the other, as the native layer's projection leaves them."""
    first, second, third = q.data_ptr(), k.data_ptr(), v.data_ptr()
    row = q.shape[-1] * q.element_size()
    return second - first == q.shape[1] * row and third - second == k.shape[1] * row


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
