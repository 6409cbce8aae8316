"""What a process may take of a machine that many share: sizes, who sets them, and who respects them."""

from __future__ import annotations

import pytest
import torch

import labcore
from labcore.cache import create
from labcore.cache.base import NEVER_TOO_BIG
from labcore.errors import DeviceError, OutOfMemory
from labcore.perf import budget, machine

GIB = 1 << 30


@pytest.fixture(autouse=True)
def no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (budget.MEMORY, budget.HUB_MEMORY, budget.GPU_MEMORY):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("3GiB", 3 * GIB), ("3g", 3 * GIB), ("1.5 G", 3 * GIB // 2), ("3GB", 3 * 10**9), ("512M", GIB // 2)]
    + [("2T", 2048 * GIB), ("4096", 4096), ("100 KB", 100_000)],
)
def test_sizes_as_people_write_them(monkeypatch: pytest.MonkeyPatch, text: str, expected: int) -> None:
    monkeypatch.setenv(budget.MEMORY, text)
    assert budget.memory_budget() == budget.Budget(expected, budget.MEMORY)


@pytest.mark.parametrize("text", ["lots", "3 apples", "0", "-2G", "G", "3PiB", "25%"])
def test_what_is_no_size_is_named_with_the_variable(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(budget.HUB_MEMORY, text)
    with pytest.raises(DeviceError, match=f"MEM_LIMIT={text} is no size of memory; give one such as 3GiB"):
        machine.available_memory("cpu")


def test_the_labs_own_limit_goes_before_the_hubs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert budget.memory_budget() is None
    monkeypatch.setenv(budget.HUB_MEMORY, str(2 * GIB))
    assert str(budget.memory_budget()) == "the 2.15 GB that MEM_LIMIT allows"
    monkeypatch.setenv(budget.MEMORY, "1G")
    assert budget.memory_budget() == budget.Budget(GIB, budget.MEMORY)


def test_a_share_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(budget.GPU_MEMORY, "25%")
    assert budget.gpu_budget(80 * GIB) == budget.Budget(20 * GIB, budget.GPU_MEMORY)
    monkeypatch.setenv(budget.GPU_MEMORY, "100GiB")
    assert budget.gpu_budget(80 * GIB) == budget.Budget(80 * GIB, budget.GPU_MEMORY)
    for wrong in ("0%", "120%", "a quarter%", "some"):
        monkeypatch.setenv(budget.GPU_MEMORY, wrong)
        with pytest.raises(DeviceError, match=r"LABCORE_GPU_MEMORY_LIMIT=.* is no (share|size) of"):
            budget.gpu_budget(80 * GIB)


def test_what_is_held_counts_against_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    held = budget.resident_bytes()
    assert 50 << 20 < held < machine.total_memory("cpu")
    monkeypatch.setenv(budget.MEMORY, str(held + GIB))
    assert machine.total_memory("cpu") == held + GIB
    before = machine.available_memory("cpu")
    assert GIB / 2 < before < 1.2 * GIB
    kept = torch.ones(64 << 20)  # 256 MiB, written, so that they are held
    assert before - machine.available_memory("cpu") > 0.9 * kept.nbytes
    monkeypatch.setenv(budget.MEMORY, str(held // 2))
    assert machine.available_memory("cpu") == 0


def test_a_cache_beyond_the_budget_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    model = labcore.load("story", device="cpu")
    monkeypatch.setenv(budget.MEMORY, str(budget.resident_bytes() + NEVER_TOO_BIG // 4))
    with pytest.raises(OutOfMemory, match=r"of the \S+ GB that LABCORE_MEMORY_LIMIT allows are free on cpu"):
        create("contiguous", model.config, batch_size=4096)


def test_a_model_beyond_the_budget_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(budget.MEMORY, str(budget.resident_bytes() + (64 << 20)))
    with pytest.raises(OutOfMemory, match=r"GB of the \S+ GB that LABCORE_MEMORY_LIMIT allows free"):
        labcore.load("shape:smollm2-135m", device="cpu")


@pytest.mark.gpu
def test_a_gpu_is_shared_by_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lab's guard says no first; PyTorch's allocator says no to whoever does not ask the guard."""
    device = torch.device("cuda", 0)
    monkeypatch.setenv(budget.GPU_MEMORY, "2GiB")
    budget.hold_to_budget.cache_clear()
    try:
        assert machine.total_memory(device) == 2 * GIB
        assert machine.available_memory(device) <= 2 * GIB
        with pytest.raises(OutOfMemory, match="GB that LABCORE_GPU_MEMORY_LIMIT allows free"):
            labcore.load("shape:llama-3.2-1b", device="cuda", dtype="bfloat16")
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(3 * GIB, dtype=torch.uint8, device=device)
        small = torch.empty(GIB // 2, dtype=torch.uint8, device=device)
        assert machine.available_memory(device) <= 2 * GIB - small.nbytes
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        budget.hold_to_budget.cache_clear()
