"""Paged attention, copies between blocks and tensors, and the native decode kernel, against the reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from labcore import kernels
from labcore.kernels import native, reference

needs_compiler = pytest.mark.skipif(not native.available(), reason=native.status())

heads = st.sampled_from([(4, 4), (4, 2), (6, 2), (5, 1), (8, 1), (14, 2)])
shapes = st.tuples(
    heads, st.sampled_from([2, 8, 16, 20, 32, 64]), st.sampled_from([1, 3, 4, 16]),
    st.lists(st.integers(0, 90), min_size=1, max_size=4),
)  # fmt: skip


def pool_of(kv_heads: int, size: int, block: int, lengths: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """A pool with every sequence's blocks in random places, their tables, and their lengths."""
    need = [max(1, -(-length // block)) for length in lengths]
    order = torch.randperm(sum(need) + 2)
    tables = torch.zeros(len(lengths), max(need), dtype=torch.int32)
    for row, count in enumerate(need):
        start = sum(need[:row])
        tables[row, :count] = order[start : start + count]
    pool = torch.randn(2, kv_heads, len(order), block, size)
    return pool, tables, torch.tensor(lengths, dtype=torch.int32)


@settings(max_examples=60, deadline=None)
@given(shape=shapes, seed=st.integers(0, 99))
def test_gathered_attention_is_the_reference(
    shape: tuple[tuple[int, int], int, int, list[int]], seed: int
) -> None:
    torch.manual_seed(seed)
    (query_heads, kv_heads), size, block, lengths = shape
    pool, tables, lens = pool_of(kv_heads, size, block, lengths)
    q = torch.randn(len(lengths), query_heads, 1, size)
    found = kernels.paged_attention(q, pool, tables, lens, longest=max(1, *lengths))
    torch.testing.assert_close(found, reference.paged_attention(q, pool, tables, lens), atol=1e-5, rtol=1e-5)


@needs_compiler
@settings(max_examples=60, deadline=None)
@given(shape=shapes, seed=st.integers(0, 99), far=st.sampled_from([0, 700]))
def test_native_step_appends_and_is_the_reference(
    shape: tuple[tuple[int, int], int, int, list[int]], seed: int, far: int
) -> None:
    """far: long enough to be split among threads."""
    torch.manual_seed(seed)
    (query_heads, kv_heads), size, block, lengths = shape
    lengths = [length + far if length else 0 for length in lengths]
    pool, tables, lens = pool_of(kv_heads, size, block, lengths)
    q, k, v = torch.randn(len(lengths), query_heads + 2 * kv_heads, 1, size).split(
        (query_heads, kv_heads, kv_heads), dim=1
    )
    after = pool.clone()
    ends = [tables[row, (length - 1) // block].long() * block + (length - 1) % block if length else -1
            for row, length in enumerate(lengths)]  # fmt: skip
    kernels.write_blocks(after, k, v, torch.tensor(ends)[:, None])
    memory = native.KVMemory([pool], query_heads, paged=True)
    found = memory.attend(0, q, k, v, native.NewTokens(lens, max(1, *lengths), tables))
    torch.testing.assert_close(pool, after, atol=0, rtol=0)
    torch.testing.assert_close(found, reference.paged_attention(q, after, tables, lens), atol=2e-5, rtol=1e-4)


@needs_compiler
@settings(max_examples=40, deadline=None)
@given(
    heads=heads,
    batch=st.integers(1, 3),
    held=st.integers(0, 900),
    pads=st.lists(st.integers(0, 50), min_size=3, max_size=3),
)
def test_native_contiguous_step_with_padding(
    heads: tuple[int, int], batch: int, held: int, pads: list[int]
) -> None:
    torch.manual_seed(held)
    store = torch.randn(2, batch, heads[1], held + 5, 16)
    q, k, v = torch.randn(batch, heads[0] + 2 * heads[1], 1, 16).split((heads[0], heads[1], heads[1]), dim=1)
    starts = torch.tensor([min(pad, held) for pad in pads[:batch]], dtype=torch.int32)
    lengths = torch.full((batch,), held + 1, dtype=torch.int32)
    new = native.NewTokens(lengths, held + 1, starts=starts)
    found = native.KVMemory([store], heads[0]).attend(0, q, k, v, new)
    keys, values = store[:, :, :, : held + 1]
    torch.testing.assert_close(keys[:, :, -1:], k, atol=0, rtol=0)
    mask = (torch.arange(held + 1) >= starts[:, None])[:, None, None]
    expected = reference.attention(q, keys, values, mask=mask)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=3), block=st.sampled_from([1, 3, 8]))
def test_what_is_written_is_gathered(lengths: list[int], block: int) -> None:
    torch.manual_seed(0)
    pool, tables, _ = pool_of(2, 4, block, lengths)
    longest = max(lengths)
    k, v = torch.randn(2, len(lengths), 2, longest, 4).unbind()
    at = torch.arange(longest)
    blocks = (at // block).clamp_max(tables.shape[1] - 1)
    slots = torch.stack([
        torch.where(at < length, tables[row, blocks].long() * block + at % block, -1)
        for row, length in enumerate(lengths)
    ])  # fmt: skip
    untouched = pool.clone()
    kernels.write_blocks(pool, k, v, slots)
    keys, values = kernels.gather_blocks(pool, tables, longest)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(keys[row, :, :length], k[row, :, :length], atol=0, rtol=0)
        torch.testing.assert_close(values[row, :, :length], v[row, :, :length], atol=0, rtol=0)
    written = (pool != untouched).any(-1).any(0).any(0).sum()
    assert written == sum(lengths)


@needs_compiler
@settings(max_examples=40, deadline=None)
@given(
    heads=heads,
    held=st.lists(st.integers(0, 700), min_size=1, max_size=3),
    new=st.lists(st.integers(1, 9), min_size=3, max_size=3),
    block=st.sampled_from([1, 16]),
)
def test_several_new_tokens_of_a_sequence_see_what_was_before_each(
    heads: tuple[int, int], held: list[int], new: list[int], block: int
) -> None:
    """As many rows as there are new tokens, over the table of the sequence that each belongs to."""
    torch.manual_seed(sum(held))
    new, ends = new[: len(held)], [a + b for a, b in zip(held, new, strict=False)]
    pool, tables, _ = pool_of(heads[1], 16, block, ends)
    of = torch.tensor([row for row, count in enumerate(new) for _ in range(count)], dtype=torch.int32)
    lengths = torch.cat([torch.arange(a + 1, b + 1) for a, b in zip(held, ends, strict=True)]).int()
    q, k, v = torch.randn(len(of), heads[0] + 2 * heads[1], 1, 16).split(
        (heads[0], heads[1], heads[1]), dim=1
    )
    at = lengths.long() - 1
    slots = tables[of.long(), at // block].long() * block + at % block
    after = pool.clone()
    kernels.write_blocks(after, k, v, slots[:, None])
    step = native.NewTokens(lengths, max(ends), tables, sequences=of)
    found = native.KVMemory([pool], heads[0], paged=True).attend(0, q, k, v, step)
    torch.testing.assert_close(pool, after, atol=0, rtol=0)
    expected = reference.paged_attention(q, after, tables[of.long()], lengths)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_a_group_too_large_for_the_kernel_is_left_to_pytorch() -> None:
    if not native.available():
        pytest.skip(native.status())
    assert native.KVMemory.bind([torch.zeros(2, 1, 1, 4, 8)], 20) is None
