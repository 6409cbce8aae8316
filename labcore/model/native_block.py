"""A layer's fast twin for decoding on a CPU, one token of each of a few sequences, through the C kernels.

The layer's two halves are one call each; between them the cache attends, as it does for the readable `Block`,
so every kind of cache works with both. `Transformer.fast = False` goes back to the readable path.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from labcore.config import ModelConfig
from labcore.kernels import native

if TYPE_CHECKING:
    from labcore.model.transformer import AttendingCache, Block


class NativeBlock:
    """Called as a Block is, with x (B, 1, hidden) fp32, which it updates in place and returns."""

    def __init__(self, block: Block, config: ModelConfig) -> None:
        self.layer = block.attention.layer
        self._sources = _sources(block)
        self._parts = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        self.kernel = native.LayerKernel(config, _weights(block))
        self.q, self.k, self.v = self.kernel.qkv.split(self._parts, dim=1)

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, cache: AttendingCache) -> Tensor:
        """(B, 1, hidden) -> the same tensor."""
        if x.shape[0] != self.kernel.tokens:
            self.kernel.resize(x.shape[0])
            self.q, self.k, self.v = self.kernel.qkv.split(self._parts, dim=1)  # (B, heads, 1, head_dim)
        self.kernel.before_attention(x, cos, sin)
        mixed = cache.attend(self.layer, self.q, self.k, self.v)
        self.kernel.after_attention(mixed.contiguous(), x)
        return x

    def current(self) -> bool:
        """Whether the block still has the weights that the kernel points at, and the kernel its threads."""
        if self.kernel.threads != torch.get_num_threads():
            return False
        return all(home.get(name) is thing for home, name, thing in self._sources)


# Beyond so many sequences PyTorch's matrix product makes better use of the arithmetic units.
MAX_BATCH = 16


def native_blocks(layers: Iterable[Block], config: ModelConfig) -> list[NativeBlock] | None:
    """Fast twins of all layers; None where the weights are not fp32, or the kernels cannot be built."""
    layers = list(layers)
    if not all(native.fits(_weights(block)) for block in layers) or not native.available():
        return None
    return [NativeBlock(block, config) for block in layers]


def _weights(block: Block) -> dict[str, Tensor | None]:
    """The block's tensors by the kernel's names."""
    attention, mlp = block.attention, block.mlp
    return {
        "input_norm": block.input_norm.weight,
        "qkv": attention.qkv_proj.weight,
        "qkv_bias": attention.qkv_proj.bias,
        "q_norm": attention.q_norm.weight if attention.q_norm is not None else None,
        "k_norm": attention.k_norm.weight if attention.k_norm is not None else None,
        "o": attention.o_proj.weight,
        "o_bias": attention.o_proj.bias,
        "post_norm": block.post_norm.weight,
        "gate_up": mlp.gate_up_proj.weight,
        "gate_up_bias": mlp.gate_up_proj.bias,
        "down": mlp.down_proj.weight,
        "down_bias": mlp.down_proj.bias,
    }


def _sources(block: Block) -> list[tuple[dict[str, Any], str, Any]]:
    """Where each module and parameter is kept, to notice when another is put in its place."""
    found: list[tuple[dict[str, Any], str, Any]] = []
    for module in block.modules():
        found += [(module._modules, name, child) for name, child in module._modules.items()]
        found += [(module._parameters, name, tensor) for name, tensor in module._parameters.items()]
    return found
