"""The operations of `labcore.kernels` beside `labcore.kernels.reference`, on a model's shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from labcore import kernels
from labcore.bench.kernel_case import Bench, Call, Case
from labcore.kernels import native, reference
from labcore.kernels.native import elementwise, prompt_attention
from labcore.kernels.native.decode_attention import MAX_GROUP
from labcore.kernels.on_gpu import takes as on_gpu

BLOCK = 16  # positions of a block

Decode = Callable[[Tensor, Tensor, Tensor], Tensor]  # of q (B, h, 1, d), k and v (B, h_kv, 1, d)


def operations(bench: Bench) -> Iterator[Case]:
    """Those around the products at one token and at a prompt; attention of prompts and of decode steps."""
    for tokens in (1, bench.sizes.prompt):
        for make in (rms_norm, apply_rope, norm_heads, swiglu):
            yield make(bench, tokens)
    for case in (prompt_attention_case, one_query, paged_attention, paged_decode, contiguous_decode):
        yield case(bench)


def _path(x: Tensor, native_too: bool = False) -> str:
    return "triton" if on_gpu(x) else "native" if native_too else "torch"


# Around the products


def rms_norm(bench: Bench, tokens: int) -> Case:
    """Of the residual stream."""
    width, eps = bench.config.hidden_size, bench.config.rms_norm_eps

    def make(_: int) -> tuple[Call, Call]:
        x, weight = bench.normal(1, tokens, width), bench.normal(width)
        return lambda: kernels.rms_norm(x, weight, eps), lambda: reference.rms_norm(x, weight, eps)

    moved = bench.size * (2 * tokens * width + width)
    return bench.case("rms_norm", f"{tokens} × {width}", "torch", make, moved=moved)


def _heads(bench: Bench, tokens: int) -> Tensor:
    """(1, h + h_kv, tokens, d), queries and keys, as the fused projection leaves them."""
    config = bench.config
    turned = config.num_attention_heads + config.num_key_value_heads
    made = bench.normal(1, tokens, turned + config.num_key_value_heads, config.head_dim).transpose(1, 2)
    return made[:, :turned]


def apply_rope(bench: Bench, tokens: int) -> Case:
    """Of all query and key heads."""
    cos, sin = bench.angles(tokens)
    x = _heads(bench, tokens)

    def make(_: int) -> tuple[Call, Call]:
        x = _heads(bench, tokens)
        return lambda: kernels.apply_rope(x, cos, sin), lambda: reference.apply_rope(x, cos, sin)

    moved = bench.size * (2 * x.numel() + cos.numel() + sin.numel())
    return bench.case("apply_rope", _shape(x), _path(x), make, moved=moved)


def norm_heads(bench: Bench, tokens: int) -> Case:
    """Of all query and key heads, whether or not the model has such norms."""
    size, eps, queries = bench.config.head_dim, bench.config.rms_norm_eps, bench.config.num_attention_heads
    x = _heads(bench, tokens)

    def make(_: int) -> tuple[Call, Call]:
        x, of_query, of_key = _heads(bench, tokens), bench.normal(size), bench.normal(size)
        given = (x, of_query, of_key, queries, eps)
        return lambda: kernels.norm_heads(*given), lambda: reference.norm_heads(*given)

    moved = bench.size * (2 * x.numel() + 2 * size)
    return bench.case("norm_heads", _shape(x), _path(x), make, moved=moved)


def swiglu(bench: Bench, tokens: int) -> Case:
    """Of gate and up, side by side."""
    width = bench.config.intermediate_size
    x = bench.normal(1, tokens, 2 * width)

    def make(_: int) -> tuple[Call, Call]:
        x = bench.normal(1, tokens, 2 * width)
        return lambda: kernels.swiglu(x), lambda: reference.swiglu(x)

    path = _path(x, elementwise.takes(x))
    return bench.case("swiglu", f"{tokens} × 2 × {width}", path, make, moved=bench.size * 3 * tokens * width)


def _shape(x: Tensor) -> str:
    """(1, heads, n, d) told as n tokens of so many heads."""
    return f"{x.shape[2]} × {x.shape[1]} heads × {x.shape[3]}"


# Attention


def prompt_attention_case(bench: Bench) -> Case:
    """A whole prompt, each position over itself and those before."""
    config, n = bench.config, bench.sizes.prompt
    heads, kv_heads, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim

    def operands() -> tuple[Tensor, Tensor, Tensor]:
        made = bench.normal(1, n, heads + 2 * kv_heads, size).transpose(1, 2)
        q, k, v = made.split((heads, kv_heads, kv_heads), dim=1)
        return q, k, v

    def make(_: int) -> tuple[Call, Call]:
        q, k, v = operands()
        return (
            lambda: kernels.attention(q, k, v, causal=True),
            lambda: reference.attention(q, k, v, causal=True),
        )

    path = "native" if prompt_attention.takes(*operands()) else "torch"
    return bench.case(
        "attention (prompt)", f"{n} causal, {heads} heads over {kv_heads} × {size}", path, make,
        moved=bench.size * n * (2 * heads + 2 * kv_heads) * size,
        flops=2 * heads * size * n * (n + 1),
    )  # fmt: skip


def _decode_sizes(bench: Bench, new: int = 0) -> tuple[str, int, int]:
    """(shape, bytes, FLOPs) of one query of each sequence over its context; new: positions also written."""
    config, batch, context = bench.config, bench.sizes.batch, bench.sizes.context
    heads, kv_heads, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    moved = bench.size * batch * size * (2 * kv_heads * (context + new) + 2 * heads)
    shape = f"{batch} × {context}, {heads} heads over {kv_heads} × {size}"
    return shape, moved, 4 * batch * heads * size * context


def _query(bench: Bench) -> Tensor:
    return bench.normal(bench.sizes.batch, bench.config.num_attention_heads, 1, bench.config.head_dim)


def _newest(bench: Bench) -> tuple[Tensor, Tensor, Tensor]:
    """q (B, h, 1, d), k and v (B, h_kv, 1, d) of the position that a step computes."""
    config = bench.config
    shape = (bench.sizes.batch, config.num_key_value_heads, 1, config.head_dim)
    return _query(bench), bench.normal(*shape), bench.normal(*shape)


def one_query(bench: Bench) -> Case:
    """One query of each sequence over plain keys and values."""
    config, sizes = bench.config, bench.sizes
    shape, moved, flops = _decode_sizes(bench)

    def make(_: int) -> tuple[Call, Call]:
        held = (sizes.batch, config.num_key_value_heads, sizes.context, config.head_dim)
        given = (_query(bench), bench.normal(*held), bench.normal(*held))
        return lambda: kernels.attention(*given), lambda: reference.attention(*given)

    return bench.case("attention (one query)", shape, "torch", make, moved=moved, flops=flops)


class _Pool:
    """A layer's blocks, those of a sequence scattered over the pool, full up to the context."""

    def __init__(self, bench: Bench) -> None:
        config, sizes = bench.config, bench.sizes
        self.longest = sizes.context
        each = -(-sizes.context // BLOCK)
        shape = (2, config.num_key_value_heads, sizes.batch * each, BLOCK, config.head_dim)
        self.pool = bench.normal(*shape)
        shuffled = torch.randperm(sizes.batch * each, generator=torch.Generator().manual_seed(0))
        self.tables = shuffled.view(sizes.batch, each).int().to(bench.device)
        self.lens = torch.full((sizes.batch,), sizes.context, dtype=torch.int32, device=bench.device)

    def write(self, k: Tensor, v: Tensor) -> None:
        """k and v (B, h_kv, 1, d) at the last position of each sequence, one by one."""
        block, slot = divmod(self.longest - 1, BLOCK)
        for row, table in enumerate(self.tables.tolist()):
            self.pool[0, :, table[block], slot] = k[row, :, 0]
            self.pool[1, :, table[block], slot] = v[row, :, 0]

    def plain(self, q: Tensor) -> Tensor:
        return reference.paged_attention(q, self.pool, self.tables, self.lens)


def _tables_bytes(bench: Bench) -> int:
    return 4 * bench.sizes.batch * -(-bench.sizes.context // BLOCK)


def paged_attention(bench: Bench) -> Case:
    """One query of each sequence over its blocks."""
    shape, moved, flops = _decode_sizes(bench)

    def make(_: int) -> tuple[Call, Call]:
        held, q = _Pool(bench), _query(bench)
        given = (q, held.pool, held.tables, held.lens)
        return lambda: kernels.paged_attention(*given, longest=held.longest), lambda: held.plain(q)

    return bench.case(
        "paged_attention", shape, _path(_query(bench)), make, moved=moved + _tables_bytes(bench), flops=flops,
        recordable=False,
    )  # fmt: skip


def paged_decode(bench: Bench) -> Case:
    """A step's key and value into the blocks, then attention over them; on a CPU as the cache does it."""
    shape, moved, flops = _decode_sizes(bench, new=1)

    def make(_: int) -> tuple[Call, Call]:
        held, (q, k, v) = _Pool(bench), _newest(bench)

        def plain() -> Tensor:
            held.write(k, v)
            return held.plain(q)

        fast = _paged_step(bench, held)
        return lambda: fast(q, k, v), plain

    return bench.case(
        "paged_decode", shape, _path(_query(bench), _in_c(bench)), make,
        moved=moved + _tables_bytes(bench), flops=flops, recordable=False,
    )  # fmt: skip


def _paged_step(bench: Bench, held: _Pool) -> Decode:
    if _in_c(bench):
        memory = native.KVMemory([held.pool], bench.config.num_attention_heads, paged=True)
        new = native.NewTokens(held.lens, held.longest, held.tables)
        return lambda q, k, v: memory.attend(0, q, k, v, new)
    return lambda q, k, v: kernels.paged_decode(
        q, k, v, held.pool, held.tables, held.lens, longest=held.longest
    )


def contiguous_decode(bench: Bench) -> Case:
    """The same over a contiguous cache."""
    config, sizes = bench.config, bench.sizes
    shape, moved, flops = _decode_sizes(bench, new=1)

    def make(_: int) -> tuple[Call, Call]:
        store = bench.normal(2, sizes.batch, config.num_key_value_heads, sizes.context, config.head_dim)
        q, k, v = _newest(bench)

        def plain() -> Tensor:
            for part, new in zip(store, (k, v), strict=True):
                part[:, :, -1] = new[:, :, 0]
            return reference.attention(q, store[0], store[1])

        fast = _contiguous_step(bench, store)
        return lambda: fast(q, k, v), plain

    path = _path(_query(bench), _in_c(bench))
    return bench.case("contiguous_decode", shape, path, make, moved=moved, flops=flops)


def _contiguous_step(bench: Bench, store: Tensor) -> Decode:
    heads, longest = bench.config.num_attention_heads, bench.sizes.context
    lens = torch.full((bench.sizes.batch,), longest, dtype=torch.int32, device=bench.device)
    if _in_c(bench):
        memory, new = native.KVMemory([store], heads), native.NewTokens(lens, longest)
        return lambda q, k, v: memory.attend(0, q, k, v, new)
    return lambda q, k, v: kernels.contiguous_decode(q, k, v, store, lens, longest=longest)


def _in_c(bench: Bench) -> bool:
    """Whether the C kernels of decode steps run here, as the caches decide it."""
    takes = bench.device.type == "cpu" and bench.dtype == "float32"
    return takes and bench.config.queries_per_kv_head <= MAX_GROUP and native.available()
