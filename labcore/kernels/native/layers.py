"""All layers of a step in one C call, for caches whose attention is in C too."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from labcore.kernels.native.build import functions
from labcore.kernels.native.decode_attention import KVMemory, NewTokens
from labcore.kernels.native.layer import LayerKernel


class LayersKernel:
    """Holds on to the layers. What a step works in is kept for the next one of as many tokens."""

    def __init__(self, layers: Sequence[LayerKernel]) -> None:
        self._layers = list(layers)
        self._config, self._threads = layers[0].config, layers[0].threads
        self._pointers = (ctypes.c_void_p * len(layers))(*(ctypes.addressof(one.struct) for one in layers))
        self._call = functions().labcore_layers
        self._resize(1)

    def _resize(self, tokens: int) -> None:
        config = self._config
        self._tokens, heads = tokens, config.num_attention_heads
        self._qkv = torch.empty(tokens, heads + 2 * config.num_key_value_heads, config.head_dim)
        self._mixed = torch.empty(tokens, heads, config.head_dim)
        works, floats = zip(*(one.room(tokens) for one in self._layers), strict=True)
        self._work = max(works)
        self._scratch = torch.empty(max(floats) + self._threads * self._work // 4)

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, memory: KVMemory, new: NewTokens) -> None:
        """x: the residual stream (tokens, 1, hidden), updated in place. cos, sin: (tokens or 1, 1, 1, d)."""
        tokens = x.shape[0]
        if tokens != self._tokens:
            self._resize(tokens)
        splits = memory.splits(new, self._threads)
        parts = torch.empty(memory.parts(new, splits))
        step = memory.describe(new, splits)
        self._point(step)
        step.parts = parts.data_ptr()
        turn = cos.shape[-1] if cos.shape[0] > 1 else 0
        self._call(
            self._pointers, memory.keys, memory.values, len(self._layers), ctypes.byref(step), x.data_ptr(),
            cos.data_ptr(), sin.data_ptr(), turn, self._qkv.data_ptr(), self._scratch.data_ptr(), self._work,
            self._threads,
        )  # fmt: skip

    def _point(self, step: ctypes.Structure) -> None:
        """Queries, new keys and new values lie behind one another for each token."""
        config, heads = self._config, self._config.num_attention_heads
        row, size = self._qkv.stride(0), config.head_dim * 4
        step.q = self._qkv.data_ptr()
        step.new_k = step.q + heads * size
        step.new_v = step.new_k + config.num_key_value_heads * size
        step.q_stride = step.k_stride = step.v_stride = row
        step.out = self._mixed.data_ptr()
