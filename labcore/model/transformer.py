"""The Transformer of the Llama family: Llama, Mistral, Qwen2 and Qwen3 differ only in its configuration.

It is mathematics and nothing else. Where keys and values live, which positions are being computed and what a
query may see is the cache's business: the model meets it in `cache.begin` (positions of this step),
`cache.attend` (one layer's attention) and `cache.commit` (the step is done).

Two matrices are fused because at batch 1 a step is bound by reads and launches, not by arithmetic:
queries, keys and values come from one product, gate and up from another.
"""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import nullcontext
from itertools import count
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from labcore import kernels
from labcore.config import ModelConfig
from labcore.kernels import native
from labcore.model import gpu_block
from labcore.model.native_block import NativeDecoder, native_decoder
from labcore.model.rope import Rope
from labcore.quant.linear import QuantLinear


class AttendingCache(Protocol):
    """What the model needs of a KV cache; `labcore.cache` has the kinds."""

    @property
    def packed(self) -> bool:
        """Whether new tokens of one row, (1, n), may come as n rows of one token each."""

    def begin(self, n: int) -> Tensor:
        """Make room for n more positions of every sequence; returns those positions, (B or 1, n)."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store k and v (B, h_kv, n, d), return the attention of q (B, h, n, d), same shape as q."""

    def native_step(self) -> tuple[native.KVMemory, native.NewTokens] | None:
        """Where the C kernels find keys and values, to do all `attend` of this step; None: they cannot."""

    def commit(self) -> None:
        """All layers have stored their keys and values: the step's positions now count."""


_SERIALS = count()


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a learnt scale."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) -> (..., size)."""
        return kernels.rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """Causal self-attention with rotary positions; query heads share key/value heads in groups."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        rows = (self.heads + 2 * self.kv_heads) * self.head_dim
        self.qkv_proj = nn.Linear(config.hidden_size, rows, bias=config.attention_bias)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=config.o_proj_bias)
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if config.qk_norm else None

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: AttendingCache) -> Tensor:
        """(B, n, hidden) -> (B, n, hidden)."""
        batch, n, _ = x.shape
        qkv = self.qkv_proj(x).view(batch, n, -1, self.head_dim).transpose(1, 2)  # (B, h + 2 h_kv, n, d)
        qk, v = qkv.split((self.heads + self.kv_heads, self.kv_heads), dim=1)
        q, k = kernels.apply_rope(self._norm(qk), cos, sin).split((self.heads, self.kv_heads), dim=1)
        mixed = cache.attend(self.layer, q, k, v)  # (B, h, n, d)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, n, -1))

    def _norm(self, qk: Tensor) -> Tensor:
        """Qwen3 normalises each query and key head before it is rotated."""
        if self.q_norm is None or self.k_norm is None:
            return qk
        return kernels.norm_heads(qk, self.q_norm.weight, self.k_norm.weight, self.heads, self.q_norm.eps)


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, n, hidden) -> (B, n, hidden)."""
        return self.down_proj(kernels.swiglu(self.gate_up_proj(x)))


class Block(nn.Module):
    """One layer: what the other tokens say, then what to make of it; each added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config, layer)
        self.post_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: AttendingCache) -> Tensor:
        """(B, n, hidden) -> (B, n, hidden)."""
        x = x + self.attention(self.input_norm(x), cos, sin, cache)
        return x + self.mlp(self.post_norm(x))


class Transformer(nn.Module):
    """Tokens in, logits out."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.rope = Rope(config)
        self._serial = next(_SERIALS)  # another model may get the memory of one that is gone
        self._fast = True
        self._native: NativeDecoder | Literal[False] | None = None  # None: not tried yet
        self.tie()

    @property
    def fast(self) -> bool:
        """False: the readable path, and quantized layers by their definition, even where faster ones are."""
        return self._fast

    @fast.setter
    def fast(self, value: bool) -> None:
        self._fast = value
        for module in self.modules():
            if isinstance(module, QuantLinear):
                module.fast = value

    def tie(self) -> None:
        """Let the head share the embedding's matrix, where the configuration says so."""
        if self.config.tie_word_embeddings and isinstance(self.embed_tokens, nn.Embedding):
            self.lm_head.weight = self.embed_tokens.weight

    def weights(self) -> Hashable:
        """Equal as long as the weights are the same tensors with the same values: what was computed from them
        then still holds. Changes made in inference mode to tensors made in it are not seen."""
        tensors = (*self.parameters(), *self.buffers())
        return self._serial, *((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)

    def reset_rope(self) -> None:
        """Recompute the rotary frequencies on the weights' device (they are in no checkpoint)."""
        self.rope.reset(self.norm.weight.device)

    def forward(self, tokens: Tensor, cache: AttendingCache, logits_to_keep: int | Tensor = 0) -> Tensor:
        """Compute the next n positions of each sequence.

        tokens: (B, n) int64. cache: holds what came before, and takes what is computed now.
        logits_to_keep: only the last so many positions (0: all), or the positions in a tensor of indices.
        Returns (B, n or as many as are kept, vocab) in the model's dtype.
        Raises CacheFull when the cache has no room for n more.
        """
        if torch.is_autocast_enabled(tokens.device.type):  # the model's dtype is what it was loaded in
            with torch.autocast(tokens.device.type, enabled=False):
                return self.forward(tokens, cache, logits_to_keep)
        with nullcontext() if self.fast else kernels.plainly():
            return self._compute(tokens, cache, logits_to_keep)

    def _compute(self, tokens: Tensor, cache: AttendingCache, logits_to_keep: int | Tensor) -> Tensor:
        x = self.embed_tokens(tokens)  # (B, n, hidden)
        cos, sin = self.rope(cache.begin(tokens.shape[1]), x.dtype)
        kept = logits_to_keep if isinstance(logits_to_keep, Tensor) else slice(-logits_to_keep, None)
        packed = x.shape[0] == 1 and x.shape[1] > 1 and cache.packed
        if twin := self._native_for(x, packed):
            logits = twin(x, cos, sin, cache, kept)
        elif gpu_block.takes(self, x):
            logits = gpu_block.decode(self, x, cos, sin, cache)
        else:
            for layer in self.layers:
                x = layer(x, cos, sin, cache)
            logits = self.lm_head(self.norm(x[:, kept]))
        cache.commit()
        return logits

    @torch.inference_mode()
    def greedy(self, tokens: list[int], count: int, cache: AttendingCache) -> list[int]:
        """The `count` tokens behind these, which a cache of one sequence does not hold; each the most likely.

        The cache then holds all but the last. One C call where the kernels are, so that no small model waits
        for Python between its steps; else a step for each. Raises CacheFull.
        """
        if len(tokens) > 2:  # a prompt, at once
            self(self._row(tokens[:-1]), cache, logits_to_keep=1)
            tokens = tokens[-1:]
        if (at_once := self._greedy_at_once(tokens, count, cache)) is not None:
            return at_once
        found: list[int] = []
        for _ in range(count):
            logits = self(self._row(tokens), cache, logits_to_keep=1)
            tokens = [int(logits[0, -1].argmax())]
            found += tokens
        return found

    def _row(self, tokens: list[int]) -> Tensor:
        return torch.tensor([tokens], device=self.norm.weight.device)

    def _greedy_at_once(self, tokens: list[int], count: int, cache: AttendingCache) -> list[int] | None:
        twin = self._native_twin() if self.norm.weight.device.type == "cpu" else None
        if twin is None:
            return None
        held = int(cache.begin(len(tokens) + count - 1)[0, 0])
        if (found := twin.greedy(tokens, count, cache, held)) is not None:
            cache.commit()
        return found

    def prepare(self) -> None:
        """Build the native twin now, where there can be one, rather than in the first decode step."""
        self._native = native_decoder(self) or False

    def _native_for(self, x: Tensor, packed: bool) -> NativeDecoder | None:
        """The native twin, in fp32 on a CPU, when few sequences are decoded or few tokens are served."""
        batch, new, _ = x.shape
        few = (new == 1 or packed) and batch * new <= native.MOST_TOKENS
        if not few or x.device.type != "cpu" or x.requires_grad:
            return None
        twin = self._native_twin()
        if packed and twin and (not twin.dense or native.counted()):
            return None  # codes round a prompt's tokens as they do in any number; who counts sees no C call
        return twin

    def _native_twin(self) -> NativeDecoder | None:
        if not self.fast:
            return None
        if self._native is None or (self._native and not self._native.current()):
            self.prepare()
        return self._native or None

    def __getstate__(self) -> dict[str, Any]:
        """A copy builds its own native twin."""
        return self.__dict__ | {"_native": None, "_serial": next(_SERIALS)}

    def _apply(self, *args: Any, **kwargs: Any) -> Transformer:
        """Moving the weights leaves the native twin pointing at memory that is gone."""
        self._native = None
        return super()._apply(*args, **kwargs)
