"""All layers of a step in one C call, for caches whose attention is in C too; and whole steps on end."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from labcore.kernels.native.build import fp32, functions
from labcore.kernels.native.decode_attention import Attention, KVMemory, NewTokens
from labcore.kernels.native.layer import CMatrix, Head, HeadKernel, LayerKernel, matrix_of
from labcore.kernels.native.quantized import Matrix


class _Stack(ctypes.Structure):
    """stack_t."""

    _fields_ = [*((name, ctypes.c_void_p) for name in ("layers", "keys", "values")), ("count", ctypes.c_int)]


class _Greedy(ctypes.Structure):
    """greedy_t."""

    _fields_ = [
        ("stack", _Stack),
        ("step", Attention),
        ("head", Head),
        ("embedding", CMatrix),
        *((name, ctypes.c_void_p) for name in ("freq", "length")),
        *((name, ctypes.c_void_p) for name in ("x", "cos", "sin", "qkv", "logits", "scratch")),
        ("work", ctypes.c_long),
    ]


class LayersKernel:
    """Holds on to the layers. What a step works in is kept for the next one of as many tokens."""

    def __init__(self, layers: Sequence[LayerKernel]) -> None:
        self.layers = list(layers)
        self.config, self.threads = layers[0].config, layers[0].threads
        self._pointers = (ctypes.c_void_p * len(layers))(*(ctypes.addressof(one.struct) for one in layers))
        self._call = functions().labcore_layers
        self._resize(1)

    def _resize(self, tokens: int) -> None:
        config = self.config
        self._tokens, heads = tokens, config.num_attention_heads
        self.qkv = fp32(tokens, heads + 2 * config.num_key_value_heads, config.head_dim)
        self._mixed = fp32(tokens, heads, config.head_dim)
        self.work, floats = self.room(tokens)
        self.scratch = fp32(floats + self.threads * self.work // 4)

    def room(self, tokens: int) -> tuple[int, int]:
        """What the neediest layer works in: bytes of each thread, and floats of all together."""
        works, floats = zip(*(one.room(tokens) for one in self.layers), strict=True)
        return max(works), max(floats)

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, memory: KVMemory, new: NewTokens) -> None:
        """x: the residual stream (tokens, 1, hidden), updated in place. cos, sin: (tokens or 1, 1, 1, d)."""
        if x.shape[0] != self._tokens:
            self._resize(x.shape[0])
        step, _held = self.step(memory, new)
        turn = cos.shape[-1] if cos.shape[0] > 1 else 0
        stack = self.stack(memory)
        self._call(
            ctypes.byref(stack), ctypes.byref(step), x.data_ptr(), cos.data_ptr(), sin.data_ptr(), turn,
            self.qkv.data_ptr(), self.scratch.data_ptr(), self.work, self.threads,
        )  # fmt: skip

    def stack(self, memory: KVMemory) -> _Stack:
        """The layers over this memory."""
        at = ctypes.addressof
        return _Stack(at(self._pointers), at(memory.keys), at(memory.values), len(self.layers))

    def step(self, memory: KVMemory, new: NewTokens) -> tuple[Attention, Tensor]:
        """What all layers attend to, and what must be held on to as long.

        Queries, new keys and new values lie behind one another for each token.
        """
        splits = memory.splits(new, self.threads)
        parts = fp32(memory.parts(new, splits))
        step = memory.describe(new, splits)
        config, size = self.config, self.config.head_dim * 4
        step.q = self.qkv.data_ptr()
        step.new_k = step.q + config.num_attention_heads * size
        step.new_v = step.new_k + config.num_key_value_heads * size
        step.q_stride = step.k_stride = step.v_stride = self.qkv.stride(0)
        step.out, step.parts = self._mixed.data_ptr(), parts.data_ptr()
        return step, parts


class GreedyKernel:
    """Several steps of one sequence without Python in between, each token the most likely behind the last.

    embedding: (vocab, hidden), fp32 or codes; freq: (head_dim,), minus the rotary frequencies, then the
    frequencies.
    """

    def __init__(
        self, layers: Sequence[LayerKernel], head: HeadKernel, embedding: Tensor | Matrix, freq: Tensor
    ) -> None:
        self._layers, self._head = LayersKernel(layers), head  # with memory to work in of its own
        self._embedding, self._freq = embedding, freq
        self._call = functions().labcore_greedy
        self._x, self._logits = fp32(head.struct.hidden), fp32(head.struct.vocab)
        self._angles = fp32(2, len(freq))
        works, floats = zip(self._layers.room(1), head.room(1), strict=True)
        self._work = max(works)
        self._scratch = fp32(max(floats) + self._layers.threads * self._work // 4)

    def __call__(
        self, known: Sequence[int], count: int, held: int, memory: KVMemory, new: NewTokens
    ) -> list[int]:
        """The `count` tokens behind the known ones, none of which a cache of one sequence holds yet.

        held: its positions. new: the step that begun there, of all known tokens and all but the last of those
        behind; their keys and values are written.
        """
        steps = len(known) + count - 1
        tokens = (ctypes.c_int * (steps + 1))(*known)
        length = torch.tensor([held], dtype=torch.int32)
        one = replace(new, lengths=length, longest=held + steps, sequences=None)
        step, _held = self._layers.step(memory, one)
        (cos, sin), layers = self._angles, self._layers
        at = _Greedy(
            layers.stack(memory), step, self._head.struct, matrix_of(self._embedding), self._freq.data_ptr(),
            length.data_ptr(), self._x.data_ptr(), cos.data_ptr(), sin.data_ptr(), layers.qkv.data_ptr(),
            self._logits.data_ptr(), self._scratch.data_ptr(), self._work,
        )  # fmt: skip
        self._call(ctypes.byref(at), tokens, len(known), steps, layers.threads)
        return list(tokens[len(known) :])
