"""Causal attention of whole prompts on a CPU, in fp32: the C function of `prompt_attention.c` on tensors."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from labcore.kernels.native.build import fp32, functions, library
from labcore.kernels.native.watched import counted, labelled

FEWEST = 16  # queries; below that a tile is mostly empty
MAX_D = 256  # as in prompt_attention.c


class _Prompt(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "out", "packed")),
        *((name, ctypes.c_int) for name in ("batch", "heads", "kv_heads", "n", "keys", "d")),
        *((name, ctypes.c_long * 3) for name in ("q_strides", "k_strides", "v_strides")),
    ]


def takes(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the kernel can run on these, and is worth calling."""
    return (
        q.shape[2] >= FEWEST
        and q.shape[3] <= MAX_D
        and all(
            part.device.type == "cpu" and part.dtype == torch.float32 and part.stride(3) == 1
            for part in (q, k, v)
        )
        and not (q.requires_grad or k.requires_grad or v.requires_grad)
        and not torch.compiler.is_compiling()
        and not counted()
        and library() is not None
    )


def prompt_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q: (B, h, n, d), the last n of T positions; k, v: (B, h_kv, T, d). Query i sees keys 0 to T - n + i.

    Returns (B, h, n, d), which lies in memory as (B, n, h, d): what the next projection reads.
    """
    batch, heads, n, size = q.shape
    kv_heads, keys = k.shape[1:3]
    out = fp32(batch, n, heads, size)
    packed = fp32(batch * kv_heads * -(-keys // 12) * 12 * size)
    at = [tensor.data_ptr() for tensor in (q, k, v, out, packed)]
    strides = [(ctypes.c_long * 3)(*tensor.stride()[:3]) for tensor in (q, k, v)]
    prompt = _Prompt(*at, batch, heads, kv_heads, n, keys, size, *strides)
    with labelled("attention_native"):
        functions().labcore_prompt_attention(ctypes.addressof(prompt), torch.get_num_threads())
    return out.transpose(1, 2)
