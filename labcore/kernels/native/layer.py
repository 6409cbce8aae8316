"""The C functions of `layer.c` on tensors: fp32, contiguous, on the CPU; one new token of each sequence."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from labcore.config import ModelConfig
from labcore.kernels.native.build import fp32, functions, library
from labcore.kernels.native.quantized import Matrix, rounded_bytes, rounding_bytes

# Order as in layer_t.
NORMS = ("input_norm", "q_norm", "k_norm", "post_norm")
MATRICES = ("qkv", "o", "gate_up", "down")

Weight = Tensor | Matrix | None


class CMatrix(ctypes.Structure):
    """matrix_t."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("dense", "codes", "bias")]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int) for name in ("hidden", "heads", "kv_heads", "head_dim", "intermediate")),
        ("eps", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in NORMS),
        *((name, CMatrix) for name in MATRICES),
    ]


def available() -> bool:
    """Whether the kernels can be used; builds them if they were not."""
    return library() is not None


def fits(weights: Mapping[str, Weight]) -> bool:
    """Whether these weights are what the kernels read: contiguous fp32 on the CPU, or laid-out codes."""
    return all(
        tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.is_contiguous()
        for tensor in weights.values()
        if isinstance(tensor, Tensor)
    )


def matrix_of(weight: Weight, bias: Weight = None) -> CMatrix:
    if isinstance(weight, Matrix):
        return CMatrix(None, weight.at, None)
    return CMatrix(_at(weight), None, _at(bias))


def _at(tensor: Weight) -> int | None:
    return tensor.data_ptr() if isinstance(tensor, Tensor) else None


MOST_TOKENS = 64  # beyond, PyTorch's matrix product makes better use of the arithmetic units
WIDEST = 16  # tokens that lie side by side in the widest vectors there are


def _work(weights: Iterable[Weight], tokens: int) -> int:
    """Bytes that a thread needs to lay out its inputs for these matrices: a multiple of 64."""
    kinds = list(weights)
    codes = max((weight.columns for weight in kinds if isinstance(weight, Matrix)), default=0)
    dense = max((weight.shape[-1] for weight in kinds if isinstance(weight, Tensor)), default=0)
    beside = -(-tokens // WIDEST) * WIDEST * 4 * dense if tokens > 1 else 0
    return max(tokens * rounded_bytes(codes) + rounding_bytes(codes), -(-beside // 64) * 64)


class LayerKernel:
    """One layer's weights, bound to the C functions. Holds on to the tensors whose memory it points at."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Weight]) -> None:
        self.config, self._weights = config, weights
        self.threads = torch.get_num_threads()
        pointers = [_at(weights[name]) for name in NORMS]
        pointers += [matrix_of(weights[name], weights[f"{name}_bias"]) for name in MATRICES]  # type: ignore[misc]
        shape = (config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim)
        self.struct = _Layer(*shape, config.intermediate_size, config.rms_norm_eps, *pointers)
        self._at = ctypes.byref(self.struct)
        lib = functions()
        self._before, self._after = lib.labcore_before_attention, lib.labcore_after_attention
        self.resize(1)

    def resize(self, tokens: int) -> None:
        """Make room for so many tokens a call; `q`, `k` and `v` are new then."""
        config = self.config
        parts = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        self.tokens = tokens
        self._qkv = fp32(tokens, sum(parts), 1, config.head_dim)
        self.q, self.k, self.v = self._qkv.split(parts, dim=1)  # (tokens, heads, 1, head_dim)
        self._work, floats = self.room(tokens)
        self._scratch = fp32(floats + self.threads * self._work // 4)
        self._qkv_at, self._scratch_at = self._qkv.data_ptr(), self._scratch.data_ptr()

    def room(self, tokens: int) -> tuple[int, int]:
        """What so many tokens work in: bytes of each thread, and floats of all together."""
        widths = (self.threads + 1) * self.config.hidden_size + 2 * self.config.intermediate_size
        return _work(self._weights.values(), tokens), tokens * widths

    def before_attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> None:
        """x: (tokens, 1, hidden); cos, sin: (tokens or 1, 1, 1, head_dim). Fills `q`, `k` and `v`, which are
        new ones where there were more or fewer tokens before."""
        if x.shape[0] != self.tokens:
            self.resize(x.shape[0])
        turn = cos.shape[-1] if cos.shape[0] > 1 else 0
        self._before(
            self._at, x.data_ptr(), cos.data_ptr(), sin.data_ptr(), turn,
            self._qkv_at, self._scratch_at, self._work, self.tokens, self.threads,
        )  # fmt: skip

    def after_attention(self, mixed: Tensor, x: Tensor) -> None:
        """mixed: (tokens, h, 1, head_dim); x: the residual stream (tokens, 1, hidden), updated in place."""
        at = (mixed.data_ptr(), x.data_ptr(), self._scratch_at)
        self._after(self._at, *at, self._work, self.tokens, self.threads)


class Head(ctypes.Structure):
    """head_t."""

    _fields_ = [
        ("hidden", ctypes.c_int),
        ("vocab", ctypes.c_int),
        ("eps", ctypes.c_float),
        ("norm", ctypes.c_void_p),
        ("matrix", CMatrix),
    ]


class HeadKernel:
    """The last norm and the head's matrix, bound to the C function. Holds on to both."""

    def __init__(self, norm: Tensor, head: Tensor | Matrix, eps: float) -> None:
        self._norm, self._head = norm, head
        self._threads = torch.get_num_threads()
        self._call = functions().labcore_head
        self._vocab = head.rows if isinstance(head, Matrix) else head.shape[0]
        self.struct = Head(norm.shape[0], self._vocab, eps, norm.data_ptr(), matrix_of(head))

    def room(self, tokens: int) -> tuple[int, int]:
        """As LayerKernel's."""
        return _work([self._head], tokens), self._threads * tokens * self.struct.hidden

    def __call__(self, x: Tensor) -> Tensor:
        """(tokens, 1, hidden) -> logits (tokens, 1, vocab)."""
        tokens = x.shape[0]
        work, floats = self.room(tokens)
        logits = fp32(tokens, 1, self._vocab)
        scratch = fp32(floats + self._threads * work // 4)
        self._call(
            ctypes.byref(self.struct), x.data_ptr(), logits.data_ptr(), scratch.data_ptr(), work, tokens,
            self._threads,
        )  # fmt: skip
        return logits
