"""Kernels that multiply by a model's weights, each beside the plain operations that it stands for.

Calls go from layer to layer, as a step does, so that weights come from memory and not from a cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from labcore.bench.kernel_case import MOST_SETS, Bench, Call, Case, LeftOut
from labcore.errors import ConfigError
from labcore.kernels import native, reference
from labcore.model.native_block import NativeBlock, native_decoder
from labcore.model.transformer import Attention, Block, RMSNorm
from labcore.quant import choice
from labcore.quant.formats import Format, quantize_tensor
from labcore.quant.linear import QuantLinear

FORMATS = ("int8", "int4:group=32")


def products(bench: Bench) -> Iterator[Case | LeftOut]:
    """The C kernels of a layer, and quantized products."""
    yield from layers_in_c(bench)
    yield from quantized(bench)


def blocks_of(bench: Bench) -> list[Block]:
    """The model's layers."""
    return [cast(Block, block) for block in bench.model.transformer.layers]


def bytes_of(*modules: nn.Module) -> int:
    """Bytes of their parameters."""
    return sum(parameter.nbytes for module in modules for parameter in module.parameters())


# The plain operations


def plain_norm(x: Tensor, norm: RMSNorm) -> Tensor:
    """(..., d) -> (..., d)."""
    return reference.rms_norm(x, norm.weight, norm.eps)


def plain_linear(x: Tensor, linear: nn.Linear) -> Tensor:
    """(..., columns) -> (..., rows)."""
    return F.linear(x, linear.weight, linear.bias)


def plain_before(block: Block, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Norm, projection, rotation. x: (B, n, hidden) -> q (B, h, n, d), k and v (B, h_kv, n, d)."""
    attention = block.attention
    heads, kv_heads = attention.heads, attention.kv_heads
    made = plain_linear(plain_norm(x, block.input_norm), attention.qkv_proj)
    made = made.view(*x.shape[:2], -1, attention.head_dim).transpose(1, 2)
    qk, v = made.split((heads + kv_heads, kv_heads), dim=1)
    q, k = reference.apply_rope(_normed_heads(attention, qk), cos, sin).split((heads, kv_heads), dim=1)
    return q, k, v


def _normed_heads(attention: Attention, qk: Tensor) -> Tensor:
    of_query, of_key = attention.q_norm, attention.k_norm
    if of_query is None or of_key is None:
        return qk
    return reference.norm_heads(qk, of_query.weight, of_key.weight, attention.heads, of_query.eps)


def plain_after(block: Block, mixed: Tensor, x: Tensor) -> Tensor:
    """Output projection and feed-forward part. mixed: (B, h, n, d), x: (B, n, hidden) -> the shape of x."""
    attention, mlp = block.attention, block.mlp
    x = x + plain_linear(mixed.transpose(1, 2).reshape(*x.shape[:2], -1), attention.o_proj)
    gate_up = plain_linear(plain_norm(x, block.post_norm), mlp.gate_up_proj)
    return x + plain_linear(reference.swiglu(gate_up), mlp.down_proj)


# The C kernels of a decode step


def layers_in_c(bench: Bench) -> Iterator[Case | LeftOut]:
    """Both halves of a layer and the head, for one sequence and for several."""
    if reason := _no_layers_in_c(bench):
        yield LeftOut("native layer and head", reason)
        return
    for tokens in (1, bench.sizes.together):
        yield before_attention(bench, tokens)
        yield after_attention(bench, tokens)
        yield head(bench, tokens)


def _no_layers_in_c(bench: Bench) -> str:
    """Why not here; empty where they run."""
    if bench.device.type != "cpu" or bench.dtype != "float32":
        return f"they run on a CPU in float32, and this model is in {bench.dtype} on {bench.device}."
    if not native.available():
        return native.status()
    if native_decoder(bench.model.transformer) is None:
        return "the model's weights are not what they read."
    return ""


def told(tokens: int, what: str) -> str:
    """A product's shape."""
    return f"{tokens} token{'s' if tokens > 1 else ''}, {what}"


def before_attention(bench: Bench, tokens: int) -> Case:
    """Norm, queries, keys and values, rotation."""
    blocks, (cos, sin) = blocks_of(bench), bench.angles(1)
    rows, hidden = blocks[0].attention.qkv_proj.weight.shape

    def make(number: int) -> tuple[Call, Call]:
        block = blocks[number]
        kernel, x = NativeBlock(block, bench.config).kernel, bench.normal(tokens, 1, hidden)
        kernel.resize(tokens)

        def fast() -> tuple[Tensor, Tensor, Tensor]:
            kernel.before_attention(x, cos, sin)
            return kernel.q, kernel.k, kernel.v

        return fast, lambda: plain_before(block, x, cos, sin)

    held = bytes_of(blocks[0].input_norm, blocks[0].attention.qkv_proj)
    return bench.case(
        "layer, before attention", told(tokens, f"{rows} × {hidden}"), "native", make,
        moved=held + bench.size * (tokens * (hidden + rows) + 2 * bench.config.head_dim),
        flops=2 * tokens * rows * hidden, most_sets=min(MOST_SETS, len(blocks)),
    )  # fmt: skip


def after_attention(bench: Bench, tokens: int) -> Case:
    """Output projection, norm, gate and up, activation, down; the residual stream is updated in place."""
    blocks, config = blocks_of(bench), bench.config
    hidden, mixed_width = config.hidden_size, config.num_attention_heads * config.head_dim
    numbers = hidden * (mixed_width + 3 * config.intermediate_size)

    def make(number: int) -> tuple[Call, Call]:
        block = blocks[number]
        kernel, x = NativeBlock(block, config).kernel, bench.normal(tokens, 1, hidden)
        kernel.resize(tokens)
        mixed, stream = bench.normal(tokens, config.num_attention_heads, 1, config.head_dim), x.clone()

        def fast() -> Tensor:
            kernel.after_attention(mixed, stream)
            return stream

        return fast, lambda: plain_after(block, mixed, x)

    first = blocks[0]
    held = bytes_of(first.attention.o_proj, first.post_norm, first.mlp)
    shape = f"{hidden} × {mixed_width}, 3 × {config.intermediate_size} × {hidden}"
    return bench.case(
        "layer, after attention", told(tokens, shape), "native", make,
        moved=held + bench.size * tokens * (mixed_width + 2 * hidden),
        flops=2 * tokens * numbers, most_sets=min(MOST_SETS, len(blocks)),
    )  # fmt: skip


def head(bench: Bench, tokens: int) -> Case:
    """The last norm and the logits."""
    norm, linear = bench.model.transformer.norm, bench.model.transformer.lm_head
    vocab, hidden = linear.weight.shape

    def make(_: int) -> tuple[Call, Call]:
        kernel = native.HeadKernel(norm.weight, linear.weight, norm.eps)
        x = bench.normal(tokens, 1, hidden)
        return lambda: kernel(x), lambda: plain_linear(plain_norm(x, norm), linear)

    return bench.case(
        "head", told(tokens, f"{vocab} × {hidden}"), "native", make,
        moved=bytes_of(norm, linear) + bench.size * tokens * (hidden + vocab),
        flops=2 * tokens * vocab * hidden, most_sets=1,
    )  # fmt: skip


# Quantized products


def quantized(bench: Bench) -> Iterator[Case | LeftOut]:
    """Gate and up in codes, for one token and for many."""
    choice.prepare(bench.device)
    for text in FORMATS:
        fmt = Format.parse(text)
        for tokens in (1, bench.sizes.many):
            try:
                yield quantized_linear(bench, fmt, tokens)
            except ConfigError as error:
                yield LeftOut(f"linear, {fmt.label}, {tokens}", str(error))


def quantized_linear(bench: Bench, fmt: Format, tokens: int) -> Case | LeftOut:
    """x W of codes by the path that was measured to be the quickest, beside the definition.

    ConfigError where the format's groups do not divide the columns.
    """
    weights = [block.mlp.gate_up_proj.weight for block in blocks_of(bench)]
    rows, columns = weights[0].shape
    first = QuantLinear(quantize_tensor(weights[0], fmt))
    x = bench.normal(tokens, columns)
    path, name = first.chosen(x)[0], f"linear, {fmt.label}"
    if path == "reference":
        why = "the definition was the quickest" if len(first.paths(x)) > 1 else "there is no fast path for it"
        return LeftOut(f"{name}, {tokens}", f"{why} in {bench.dtype} on {bench.device} here.")

    def make(number: int) -> tuple[Call, Call]:
        codes = quantize_tensor(weights[number], fmt)
        # A layer of its own for the definition: codes that were laid out for a kernel are slow to read back.
        fast, plain, x = QuantLinear(codes), QuantLinear(codes), bench.normal(tokens, columns)
        return lambda: fast(x), lambda: plain.reference(x)

    return bench.case(
        name, told(tokens, f"{rows} × {columns}"), path, make,
        moved=first.nbytes + bench.size * tokens * (rows + columns), flops=2 * tokens * rows * columns,
        computes=("int8",) if path == "native" else (), most_sets=min(MOST_SETS, len(weights)),
    )  # fmt: skip
