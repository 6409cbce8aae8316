"""Memory in large pages: tensors like any others, apart from one another, and given back."""

from __future__ import annotations

import mmap
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labcore.perf import pages

shapes = st.lists(st.integers(0, 300), min_size=1, max_size=2).map(tuple)
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.uint8, torch.int64])


@given(asked=st.lists(st.tuples(shapes, dtypes), min_size=1, max_size=8))
def test_tensors_do_not_overlap(asked: list[tuple[tuple[int, ...], torch.dtype]]) -> None:
    made = [pages.empty(shape, dtype).fill_(at) for at, (shape, dtype) in enumerate(asked)]
    for at, (tensor, (shape, dtype)) in enumerate(zip(made, asked, strict=True)):
        assert (tuple(tensor.shape), tensor.dtype, tensor.is_contiguous()) == (shape, dtype, True)
        assert bool((tensor == at).all())
        assert tensor.numel() * dtype.itemsize < pages.SMALLEST or tensor.data_ptr() % 64 == 0


def test_a_copy_and_what_is_larger_than_a_chunk() -> None:
    source = torch.randn(300, 70)
    copy = pages.like(source)
    assert torch.equal(copy, source)
    assert copy.data_ptr() != source.data_ptr()
    large = pages.empty((pages.CHUNK // 4 + 5,), torch.float32).fill_(2)
    assert large.sum(dtype=torch.float64) == 2 * (pages.CHUNK // 4 + 5)
    meta = torch.empty(3, device="meta")
    assert pages.like(meta) is meta


def test_a_kernel_without_large_pages_gives_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(mmap.mmap):
        def madvise(self, *_: int) -> None:
            raise OSError("Invalid argument")

    monkeypatch.setattr(pages.mmap, "mmap", Refusing)
    monkeypatch.setattr(pages, "_chunk", None)
    assert pages.empty((100, 100), torch.float32).fill_(1).sum() == 10_000
    monkeypatch.delattr(pages.mmap, "MADV_HUGEPAGE")
    monkeypatch.setattr(pages.mmap, "mmap", None)  # would fail if it were asked
    assert pages.empty((100, 100), torch.float32).fill_(1).sum() == 10_000


def test_threads_get_memory_of_their_own() -> None:
    found: list[torch.Tensor] = []

    def take() -> None:
        for _ in range(20):
            found.append(pages.empty((80, 80), torch.float32))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    starts = sorted(tensor.data_ptr() for tensor in found)
    assert len(starts) == 80
    assert all(later - earlier >= 80 * 80 * 4 for earlier, later in zip(starts, starts[1:], strict=False))
