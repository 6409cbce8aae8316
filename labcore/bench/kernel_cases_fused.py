"""Triton's products of one token with what stands around them, beside the plain operations one by one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from labcore.bench.kernel_case import MOST_SETS, Bench, Call, Case, LeftOut, Make
from labcore.bench.kernel_cases_weights import blocks_of, bytes_of, plain_linear, plain_norm, told
from labcore.kernels import reference
from labcore.kernels.around import ADD, GATE, TURN, Around
from labcore.kernels.on_gpu import triton_ready


def one_token(bench: Bench) -> Iterator[Case | LeftOut]:
    """What a GPU's decode step is made of, where Triton runs."""
    if bench.device.type == "cuda" and triton_ready():
        yield from fused(bench)
    else:
        yield LeftOut("fused_linear", "it runs on a CUDA GPU only, through Triton.")


def fused(bench: Bench) -> Iterator[Case]:
    """Products with what stands around them: a norm before; a gate, a rotation or the residual behind."""
    for case in (fused_norm, fused_turn, fused_residual, fused_gate):
        yield case(bench)


def _fused_case(bench: Bench, what: str, linears: list[nn.Linear], more: int, make: Make) -> Case:
    """more: bytes beside the weights."""
    rows, columns = linears[0].weight.shape
    return bench.case(
        f"fused_linear ({what})", told(1, f"{rows} × {columns}"), "triton", make,
        moved=bytes_of(linears[0]) + more, flops=2 * rows * columns,
        most_sets=min(MOST_SETS, len(linears)),
    )  # fmt: skip


def fused_norm(bench: Bench) -> Case:
    """The last norm and the logits."""
    from labcore.kernels.triton.matvec import fused_linear

    norm, linear = bench.model.transformer.norm, bench.model.transformer.lm_head

    def make(_: int) -> tuple[Call, Call]:
        x = bench.normal(1, 1, linear.in_features)
        return (
            lambda: fused_linear(x, linear.weight, Around(norm=norm.weight, eps=norm.eps)),
            lambda: plain_linear(plain_norm(x, norm), linear),
        )

    more = bench.size * (2 * linear.in_features + linear.out_features)
    return _fused_case(bench, "norm", [linear], more, make)


def fused_turn(bench: Bench) -> Case:
    """Norm, queries, keys and values, rotation."""
    from labcore.kernels.triton.matvec import fused_linear

    blocks, angles = blocks_of(bench), bench.angles(1)
    turned = bench.config.num_attention_heads + bench.config.num_key_value_heads

    def make(number: int) -> tuple[Call, Call]:
        block = blocks[number]
        linear, norm, x = block.attention.qkv_proj, block.input_norm, bench.normal(1, 1, hidden)
        around = Around(
            linear.bias, norm.weight, norm.eps, TURN, half=size // 2, angles=angles, turned=turned
        )
        return (
            lambda: fused_linear(x, linear.weight, around),
            lambda: _plain_turned(linear, plain_norm(x, norm), angles, turned, size),
        )

    hidden, size = bench.config.hidden_size, bench.config.head_dim
    linears = [block.attention.qkv_proj for block in blocks]
    more = bench.size * (2 * hidden + linears[0].out_features + 2 * size)
    return _fused_case(bench, "norm, turn", linears, more, make)


def _plain_turned(
    linear: nn.Linear, x: Tensor, angles: tuple[Tensor, Tensor], turned: int, size: int
) -> Tensor:
    heads = plain_linear(x, linear).view(1, 1, -1, size).transpose(1, 2)
    spun = torch.cat([reference.apply_rope(heads[:, :turned], *angles), heads[:, turned:]], dim=1)
    return spun.transpose(1, 2).reshape(1, 1, -1)


def fused_residual(bench: Bench) -> Case:
    """Down, added to the residual stream."""
    from labcore.kernels.triton.matvec import fused_linear

    linears = [block.mlp.down_proj for block in blocks_of(bench)]
    rows, columns = linears[0].weight.shape

    def make(number: int) -> tuple[Call, Call]:
        linear, x, stream = linears[number], bench.normal(1, 1, columns), bench.normal(1, 1, rows)
        around = Around(linear.bias, then=ADD, residual=stream)
        return (
            lambda: fused_linear(x, linear.weight, around),
            lambda: stream + plain_linear(x, linear),
        )

    return _fused_case(bench, "residual", linears, bench.size * (columns + 2 * rows), make)


def fused_gate(bench: Bench) -> Case:
    """Norm, gate and up, activation."""
    from labcore.kernels.triton.matvec import fused_linear

    blocks = blocks_of(bench)
    rows, columns = blocks[0].mlp.gate_up_proj.weight.shape

    def make(number: int) -> tuple[Call, Call]:
        linear, norm = blocks[number].mlp.gate_up_proj, blocks[number].post_norm
        x = bench.normal(1, 1, columns)
        around = Around(linear.bias, norm.weight, norm.eps, GATE)
        return (
            lambda: fused_linear(x, linear.weight, around),
            lambda: reference.swiglu(plain_linear(plain_norm(x, norm), linear)),
        )

    more = bench.size * (2 * columns + rows // 2)
    return _fused_case(bench, "norm, gate", [block.mlp.gate_up_proj for block in blocks], more, make)
