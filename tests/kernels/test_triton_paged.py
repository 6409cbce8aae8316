"""The Triton kernels against the reference: in Triton's interpreter on a CPU, or on a GPU."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from labcore import kernels
from labcore.kernels import reference
from tests.kernels.interpreter import interpreted, needs_triton, without_gpu

# heads, KV heads, head size, block size, lengths: MHA, GQA, MQA, odd sizes, block borders, an empty row
CASES = [
    (4, 4, 16, 16, [1, 16, 17]),
    (8, 2, 32, 16, [64, 65, 1, 300]),
    (6, 1, 20, 4, [5, 0, 33]),
    (14, 2, 64, 1, [7]),
    (32, 1, 16, 64, [513, 2]),
]


def check(case: tuple[int, int, int, int, list[int]], device: str, dtype: torch.dtype, limit: float) -> None:
    """Raises AssertionError where the kernel and the reference differ by more than `limit`."""
    from labcore.kernels.triton import paged_attention as module

    heads, kv_heads, size, block, lengths = case
    torch.manual_seed(0)
    need = [max(1, -(-length // block)) for length in lengths]
    order = torch.randperm(sum(need))
    tables = torch.zeros(len(lengths), max(need), dtype=torch.int32)
    for row, count in enumerate(need):
        tables[row, :count] = order[sum(need[:row]) : sum(need[:row]) + count]
    pool = torch.randn(2, kv_heads, len(order), block, size).to(device, dtype)
    # As the layer's projection leaves it: queries beside keys and values.
    q = torch.randn(len(lengths), heads + 2 * kv_heads, 1, size).to(device, dtype)[:, :heads]
    check_write(module, pool.clone(), heads)
    lens, tables = torch.tensor(lengths, dtype=torch.int32, device=device), tables.to(device)
    expected = reference.paged_attention(q, pool, tables, lens)
    for shortest in (module.MIN_SHARE, 64):  # as it is, and cut into more shares
        before, module.MIN_SHARE = module.MIN_SHARE, shortest
        processors, module.PROGRAMS_PER_SM = module.PROGRAMS_PER_SM, 64
        try:
            found = module.paged_attention(q, pool, tables, lens, longest=max(lengths))
            check_appended(module, q, pool, tables, lens, limit)
            check_contiguous(module, q, lens, kv_heads, limit)
        finally:
            module.MIN_SHARE, module.PROGRAMS_PER_SM = before, processors
        torch.testing.assert_close(found, expected, atol=limit, rtol=limit)


def check_appended(
    module: ModuleType,
    q: torch.Tensor,
    pool: torch.Tensor,
    tables: torch.Tensor,
    lens: torch.Tensor,
    limit: float,
) -> None:
    """A step's own keys and values are attended to, and stored where the tables say, and nowhere else."""
    (_, kv_heads, _, block, size), longest = pool.shape, int(lens.max())
    k, v = torch.randn(2, len(q), kv_heads, 1, size).to(q).unbind()
    expected, found = pool.clone(), pool.clone()
    for row, length in enumerate(lens.tolist()):
        if length:
            place = int(tables[row, (length - 1) // block]), (length - 1) % block
            for side, new in zip(expected, (k, v), strict=True):
                side[:, place[0], place[1]] = new[row, :, 0]
    mixed = module.paged_attention(q, found, tables, lens, longest=longest, new=(k, v))
    torch.testing.assert_close(found, expected, atol=0, rtol=0)
    attended = reference.paged_attention(q, expected, tables, lens)
    torch.testing.assert_close(mixed, attended, atol=limit, rtol=limit)


def check_contiguous(
    module: ModuleType, q: torch.Tensor, lens: torch.Tensor, kv_heads: int, limit: float
) -> None:
    """The same over sequences that lie whole, each behind its padding, in a store with room to spare."""
    longest, size = int(lens.max()), q.shape[-1]
    lens, starts = lens.clamp_min(1), (lens - 1).clamp_min(0) // 3
    store = torch.randn(2, len(q), kv_heads, longest + 5, size).to(q)
    k, v = torch.randn(2, len(q), kv_heads, 1, size).to(q).unbind()
    found = module.paged_attention(
        q, store.transpose(1, 2), None, lens, longest=longest, new=(k, v), starts=starts
    )
    for row, (start, length) in enumerate(zip(starts.tolist(), lens.tolist(), strict=True)):
        one = slice(row, row + 1)
        torch.testing.assert_close(store[:, row, :, length - 1], torch.stack([k[row, :, 0], v[row, :, 0]]))
        seen = store[:, one, :, start:length]
        expected = reference.attention(q[one], seen[0], seen[1])
        torch.testing.assert_close(found[one], expected, atol=limit, rtol=limit)


def check_write(module: ModuleType, pool: torch.Tensor, heads: int) -> None:
    """Three positions of two rows, one of them stored nowhere, out of one projection."""
    _, kv_heads, blocks, block, size = pool.shape
    made = torch.randn(2, 3, heads + 2 * kv_heads, size).to(pool).transpose(1, 2)
    _, k, v = made.split((heads, kv_heads, kv_heads), dim=1)
    last = blocks * block - 1
    slots = torch.tensor([[0, -1, last], [-1, -1, last // 2]], device=pool.device)
    expected = pool.clone()
    for row, step, slot in ((0, 0, 0), (0, 2, last), (1, 2, last // 2)):
        for side, new in zip(expected, (k, v), strict=True):
            side[:, slot // block, slot % block] = new[row, :, step]
    module.write_blocks(pool, k, v, slots)
    torch.testing.assert_close(pool, expected, atol=0, rtol=0)


# heads, KV heads, head size, block size, (start, length) of each chunk: no history, tile and block borders
CHUNKS = [
    (4, 4, 16, 16, [(0, 1), (0, 130), (5, 128)]),
    (8, 2, 32, 16, [(64, 65), (0, 7)]),
    (6, 2, 20, 4, [(3, 40)]),
    (14, 2, 64, 1, [(17, 20), (0, 33)]),
]


def check_chunks(case: tuple[int, int, int, int, list[tuple[int, int]]], device: str, limit: float) -> None:
    """All chunks in one launch against causal attention of each over its blocks; from a fused projection."""
    from labcore.kernels.triton import paged_chunks as module

    heads, kv_heads, size, block, chunks = case
    dtype = torch.float32 if limit < 1e-3 else torch.bfloat16
    torch.manual_seed(0)
    need = [-(-(start + length) // block) for start, length in chunks]
    order = torch.randperm(sum(need)).int()
    tables = torch.zeros(len(chunks), max(need), dtype=torch.int32)
    for row, count in enumerate(need):
        tables[row, :count] = order[sum(need[:row]) : sum(need[:row]) + count]
    tables = tables.to(device)
    pool = torch.randn(2, kv_heads, sum(need), block, size).to(device, dtype)
    total = sum(length for _, length in chunks)
    q = torch.randn(1, total, heads + 2 * kv_heads, size).to(device, dtype).transpose(1, 2)[:, :heads]
    starts, lengths = [start for start, _ in chunks], [length for _, length in chunks]
    tiles = module.tiles_of(starts, lengths, module.queries_of(heads, kv_heads)).to(device)
    found = torch.full_like(q, torch.nan)
    module.paged_chunks(q, pool, tables, tiles, found)
    at = 0
    for row, (start, length) in enumerate(chunks):
        k, v = kernels.gather_blocks(pool, tables[row : row + 1], start + length)
        expected = reference.attention(q[:, :, at : at + length], k, v, causal=True)
        torch.testing.assert_close(found[:, :, at : at + length], expected, atol=limit, rtol=limit)
        at += length


@pytest.mark.slow
@needs_triton
@without_gpu
def test_in_the_interpreter() -> None:
    """In a process of its own, because Triton decides when it is imported whether it interprets."""
    code = (
        "import torch; from tests.kernels import test_triton_paged as t\n"
        "for case in t.CASES:\n"
        "    t.check(case, 'cpu', torch.float32, 2e-5)\n"
        "t.check(t.CASES[1], 'cpu', torch.float16, 5e-3)\n"
        "for case in t.CHUNKS:\n"
        "    t.check_chunks(case, 'cpu', 2e-5)\n"
        "print('checked', len(t.CASES))"
    )
    assert interpreted(code).split() == ["checked", str(len(CASES))]


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, 1e-4), (torch.float16, 5e-3), (torch.bfloat16, 3e-2)]
)
def test_on_a_gpu(case: tuple[int, int, int, int, list[int]], dtype: torch.dtype, limit: float) -> None:
    check(case, "cuda", dtype, limit)


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("case", CHUNKS)
@pytest.mark.parametrize("limit", [1e-4, 3e-2], ids=["float32", "bfloat16"])
def test_chunks_on_a_gpu(case: tuple[int, int, int, int, list[tuple[int, int]]], limit: float) -> None:
    check_chunks(case, "cuda", limit)
