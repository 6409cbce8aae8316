"""The layers' fast twin for few new tokens on a CPU, through the C kernels.

Where a cache keeps keys and values as the C attention reads them (`native_step`), all layers are one call.
Else a layer's two halves are one call each, and between them the cache attends as it does for the readable
`Block`, so every kind of cache works with both. `Transformer.fast = False` goes back to the readable path.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from labcore.config import ModelConfig
from labcore.kernels import native
from labcore.quant.linear import QuantEmbedding, QuantLinear

if TYPE_CHECKING:
    from labcore.model.transformer import AttendingCache, Block, Transformer

# (the dict that keeps it, its name there, the thing)
Source = tuple[dict[str, Any], str, Any]


class NativeBlock:
    """Called as a Block is, with x (tokens, 1, hidden) fp32, which it updates in place."""

    def __init__(self, block: Block, config: ModelConfig) -> None:
        self.layer = block.attention.layer
        self.kernel = native.LayerKernel(config, _weights(block))
        self.sources = _sources(block)  # after the weights: codes are other tensors once they are laid out

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, cache: AttendingCache, packed: bool) -> None:
        """packed: the cache sees these tokens as one row, (1, h, tokens, d)."""
        kernel = self.kernel
        with native.labelled("linear_native (norm, qkv, rope)"):
            kernel.before_attention(x, cos, sin)
        parts = (kernel.q, kernel.k, kernel.v)
        with native.labelled("attention_native"):
            mixed = cache.attend(self.layer, *(_turned(part) if packed else part for part in parts))
        with native.labelled("linear_native (o, mlp)"):
            kernel.after_attention((_turned(mixed) if packed else mixed).contiguous(), x)


class NativeDecoder:
    """All layers' twins and the head: one decode step from embeddings to logits.

    Several threads may ask the same model: what a step works in is there once, so each waits for its turn.
    """

    def __init__(self, transformer: Transformer) -> None:
        config = transformer.config
        self.blocks = [NativeBlock(block, config) for block in _blocks(transformer)]
        self._turn = threading.Lock()
        weights = _head_weights(transformer)
        parts = [weights, *map(_weights, _blocks(transformer))]
        self.dense = not any(isinstance(one, native.Matrix) for part in parts for one in part.values())
        self._layers = native.LayersKernel([block.kernel for block in self.blocks])
        self._head = native.HeadKernel(weights["norm"], weights["head"], config.rms_norm_eps)
        self._greedy = self._greedy_kernel(transformer)
        self._sources = [
            *(source for block in self.blocks for source in block.sources),
            *_parts_of(transformer),
            *_parts_of(transformer.norm),
            *_parts_of(transformer.lm_head),
            *_parts_of(transformer.embed_tokens),
            (transformer.rope._buffers, "signed_freq", transformer.rope.signed_freq),
        ]

    def __call__(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: AttendingCache, kept: Tensor | slice
    ) -> Tensor:
        """x (B, 1, hidden), or (1, n, hidden) over a cache that takes packed tokens, with cos and sin as Rope
        makes them -> logits (B, 1 or as many as are kept, vocab)."""
        packed = x.shape[1] > 1
        if packed:  # each token is a row of the kernels
            x, cos, sin = x.transpose(0, 1), _turned(cos), _turned(sin)
        with self._turn:
            self._through(x, cos, sin, cache, packed)
        with native.labelled("linear_native (head)"):
            return self._head(x[kept].contiguous()).transpose(0, 1) if packed else self._head(x)

    def _through(self, x: Tensor, cos: Tensor, sin: Tensor, cache: AttendingCache, packed: bool) -> None:
        """All layers in one call where the cache's attention is in C; a profiler sees them one by one."""
        if not native.profiled() and (found := cache.native_step()) is not None:
            self._layers(x, cos, sin, *found)
            return
        for block in self.blocks:
            block(x, cos, sin, cache, packed)

    def _greedy_kernel(self, transformer: Transformer) -> native.GreedyKernel | None:
        embedding, freq = _table(transformer.embed_tokens), transformer.rope.signed_freq
        if embedding is None or not native.fits({"embedding": embedding, "freq": freq}):
            return None
        return native.GreedyKernel(self._layers.layers, self._head, embedding, freq)

    def greedy(self, known: list[int], count: int, cache: AttendingCache, held: int) -> list[int] | None:
        """The tokens of a step that has begun, of all known and of all but the last behind them; None where
        the cache's attention or the embedding is not in C."""
        if self._greedy is None or native.profiled() or (found := cache.native_step()) is None:
            return None
        with self._turn:
            return self._greedy(known, count, held, *found)

    def current(self) -> bool:
        """Whether the model still has what the kernels point at, and PyTorch as many threads."""
        if self.blocks[0].kernel.threads != torch.get_num_threads():
            return False
        return all(home.get(name) is thing for home, name, thing in self._sources)


def _turned(x: Tensor) -> Tensor:
    """(tokens, h, 1, d) <-> (1, h, tokens, d)."""
    return x.transpose(0, 2)


def native_decoder(transformer: Transformer) -> NativeDecoder | None:
    """The model's fast twin; None where a weight is not for the C kernels, or there are no kernels."""
    if not native.fits({"norm": transformer.norm.weight}):
        return None  # before codes are laid out for kernels that would not run
    parts = [_head_weights(transformer), *map(_weights, _blocks(transformer))]
    readable = all(_UNREADABLE not in part.values() and native.fits(part) for part in parts)
    if any(isinstance(part.get("gate_up"), native.Matrix) for part in parts):
        readable &= transformer.config.intermediate_size % 16 == 0  # gate and up begin with a block of rows
    return NativeDecoder(transformer) if readable and native.available() else None


_UNREADABLE = "unreadable"


def _matrix(linear: nn.Module) -> Any:
    """A layer's weights as the kernels take them: fp32, or codes laid out for them."""
    if isinstance(linear, QuantLinear):
        return linear.native_matrix() or _UNREADABLE
    return linear.weight if isinstance(linear, nn.Linear) else _UNREADABLE


def _table(embedding: nn.Module) -> Any:
    """An embedding's rows as the kernels read them; None where they do not."""
    if isinstance(embedding, nn.Embedding):
        return embedding.weight
    return embedding.native_table() if isinstance(embedding, QuantEmbedding) else None


def _head_weights(transformer: Transformer) -> dict[str, Any]:
    return {"norm": transformer.norm.weight, "head": _matrix(transformer.lm_head)}


def _blocks(transformer: Transformer) -> list[Block]:
    return list(transformer.layers)  # type: ignore[arg-type]


def _weights(block: Block) -> dict[str, Any]:
    """The block's tensors by the kernel's names."""
    attention, mlp = block.attention, block.mlp
    found: dict[str, Any] = {
        "input_norm": block.input_norm.weight,
        "q_norm": attention.q_norm.weight if attention.q_norm is not None else None,
        "k_norm": attention.k_norm.weight if attention.k_norm is not None else None,
        "post_norm": block.post_norm.weight,
    }
    linears = {
        "qkv": attention.qkv_proj,
        "o": attention.o_proj,
        "gate_up": mlp.gate_up_proj,
        "down": mlp.down_proj,
    }
    for name, linear in linears.items():
        found |= {name: _matrix(linear), f"{name}_bias": getattr(linear, "bias", None)}
    return found


def _sources(block: Block) -> list[Source]:
    """Where each module, parameter and matrix of codes is kept, to notice when another takes its place."""
    return [source for module in block.modules() for source in _parts_of(module)]


def _parts_of(module: nn.Module) -> list[Source]:
    homes: list[dict[str, Any]] = [module._modules, module._parameters]
    found = [(home, name, thing) for home in homes for name, thing in home.items()]
    if isinstance(module, QuantLinear):  # codes that were loaded anew are another tensor, scales are not
        found.append((module._buffers, "codes", module.codes))
    return found
