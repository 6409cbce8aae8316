"""What this machine is: its device, its memory, its threads and the versions that measure it.

Memory counts what a process may really take: inside a container that is the control group's limit, not
the host's memory; on a machine that many share, its budget (`labcore.perf.budget`); on a GPU it includes the
blocks that PyTorch's allocator holds but no tensor uses.
"""

from __future__ import annotations

import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from labcore.errors import DeviceError
from labcore.perf.budget import Budget, gpu_budget, hold_to_budget, memory_budget, resident_bytes


@dataclass(frozen=True)
class DeviceInfo:
    """One device as a result file or a machine line states it. Memory in bytes."""

    device: str
    name: str
    total_memory: int
    available_memory: int
    threads: int
    torch_version: str
    python_version: str
    cuda_version: str | None
    system: str

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain data."""
        return asdict(self)


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The device meant by "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1" or "mps".

    Raises DeviceError when this machine does not offer it.
    """
    if str(device) == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise DeviceError(
            f"There is no device {str(device)!r}; use auto, cpu, cuda, cuda:N or mps."
        ) from None
    if found.type == "cuda":
        return _cuda_device(found)
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("This machine has no Apple GPU that PyTorch can use; use device='cpu'.")
    if found.type not in ("cpu", "mps"):
        raise DeviceError(f"labcore does not run on {found.type!r} devices; use auto, cpu, cuda or mps.")
    return found


def _cuda_device(device: torch.device) -> torch.device:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = device.index or 0
    if index >= count:
        raise DeviceError(
            f"cuda:{index} was asked for and PyTorch sees {count} CUDA devices; use device='cpu' or 'auto'."
        )
    here = torch.device("cuda", index)
    hold_to_budget(here)
    return here


def describe(device: str | torch.device = "auto") -> DeviceInfo:
    """Everything a measurement should be recorded with. Raises DeviceError for a device not here."""
    found = resolve_device(device)
    return DeviceInfo(
        device=str(found),
        name=device_name(found),
        total_memory=total_memory(found),
        available_memory=available_memory(found),
        threads=torch.get_num_threads(),
        torch_version=torch.__version__,
        python_version=platform.python_version(),
        cuda_version=torch.version.cuda if found.type == "cuda" else None,
        system=f"{platform.system()} {platform.machine()}",
    )


def device_name(device: str | torch.device = "auto") -> str:
    """The processor's or GPU's own name, such as "NVIDIA A10" or "AMD EPYC 7B13"."""
    found = resolve_device(device)
    if found.type == "cuda":
        return torch.cuda.get_device_name(found)
    return "Apple GPU" if found.type == "mps" else _cpu_name()


def _cpu_name() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return " ".join(value.split())
    return platform.processor() or platform.machine() or "CPU"


def total_memory(device: str | torch.device = "auto") -> int:
    """Bytes this process could ever hold on the device: its memory, or less where a container or a budget
    limits it."""
    found = resolve_device(device)
    if found.type == "mps":
        return int(torch.mps.recommended_max_memory())
    mine = budget(found)
    if found.type == "cuda":
        return mine.limit if mine else _gpu_memory(found)
    limits = [limit for limit, _ in _cgroup_limits()] + ([mine.limit] if mine else [])
    return min([_physical_memory(), *limits])


def available_memory(device: str | torch.device = "auto") -> int:
    """Bytes that can be allocated on the device now, without swapping and without failing.

    CPU: the kernel's estimate (MemAvailable), every control group's head-room and what this process's budget
    leaves beyond what it holds, the least of them. CUDA: what the driver reports free plus what PyTorch has
    reserved and not handed out, or what the budget leaves.
    """
    found = resolve_device(device)
    if found.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    mine = budget(found)
    if found.type == "cuda":
        free, _ = torch.cuda.mem_get_info(found)
        used = torch.cuda.memory_allocated(found)
        rooms = [int(free + torch.cuda.memory_reserved(found) - used)]
    else:
        used = resident_bytes() if mine else 0
        rooms = [_meminfo("MemAvailable") or _physical_memory()]
        rooms += [limit - inside for limit, inside in _cgroup_limits()]
    return max(0, min(rooms + ([mine.limit - used] if mine else [])))


def budget(device: torch.device) -> Budget | None:
    """This process's share of a device that many use; None where it has none."""
    if device.type == "cuda":
        return gpu_budget(_gpu_memory(device))
    return memory_budget() if device.type == "cpu" else None


def within_budget(device: str | torch.device = "cpu") -> str:
    """For a refusal that says what is free: " of the 3.22 GB that LABCORE_MEMORY_LIMIT allows", or ""."""
    mine = budget(torch.device(device))
    return f" of {mine}" if mine else ""


def _gpu_memory(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).total_memory)


class Neighbours:
    """How many cores other programs keep busy while something is measured: a clock read twice.

    `neighbours = Neighbours()`, then the work, then `neighbours.busy_cores()`. Counts what Linux states as
    busy beyond this process, time stolen by other virtual machines included; 0.0 where it states nothing.
    """

    def __init__(self) -> None:
        self._wall, self._others = time.perf_counter(), _seconds_of_others()

    def busy_cores(self) -> float:
        """Cores busy elsewhere since this was made, on average."""
        wall, others = time.perf_counter() - self._wall, _seconds_of_others()
        if wall <= 0 or others is None or self._others is None:
            return 0.0
        return max(0.0, (others - self._others) / wall)


def _seconds_of_others() -> float | None:
    """Core-seconds spent since boot, less those of this process."""
    for line in _read("/proc/stat").splitlines():
        if line.startswith("cpu "):
            user, nice, system, _idle, _wait, *interrupts_and_stolen = (int(n) for n in line.split()[1:9])
            ticks = user + nice + system + sum(interrupts_and_stolen)
            own = os.times()
            return ticks / os.sysconf("SC_CLK_TCK") - own.user - own.system
    return None


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_folder(purpose: str) -> Path:
    """Where this user's machine keeps what can be made again (LABCORE_CACHE overrides the folder)."""
    chosen = os.environ.get("LABCORE_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(chosen) if chosen else Path(shared) / "labcore") / purpose


def last_level_cache_bytes() -> int | None:
    """Size of the CPU's largest cache as Linux states it, or None where it does not."""
    sizes = [_read(path).strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    known = [int(text[:-1]) * units[text[-1]] for text in sizes if text[-1:] in units and text[:-1].isdigit()]
    return max(known, default=None)


def _physical_memory() -> int:
    total = _meminfo("MemTotal")
    if total is None:  # not Linux: POSIX still knows its pages
        try:
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError, OSError):
            raise DeviceError(
                "This system does not tell how much memory it has; labcore needs Linux or macOS for that."
            ) from None
    return total


def _meminfo(key: str) -> int | None:
    for line in _read("/proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    return None


def _cgroup_limits(
    root: Path = Path("/sys/fs/cgroup"), membership: str = "/proc/self/cgroup"
) -> list[tuple[int, int]]:
    """(limit, bytes in use that cannot be reclaimed) of each control group above this process.

    Reads version 2 (`memory.max`) and version 1 (`memory/.../memory.limit_in_bytes`). Inside a container the
    path in /proc may not exist under the mount; the root of the mount is then this container's own group.
    """
    found = []
    for line in _read(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            names, base = ("memory.max", "memory.current", "inactive_file"), root
        elif "memory" in controllers.split(","):
            names, base = (
                ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
                root / "memory",
            )
        else:
            continue
        group = base / path.strip("/")
        for folder in (group, *group.parents):
            if (room := _cgroup_room(folder, names)) is not None:
                found.append(room)
            if folder == base:
                break
    return found


def _cgroup_room(folder: Path, names: tuple[str, str, str]) -> tuple[int, int] | None:
    limit, used = (_read(folder / name).strip() for name in names[:2])
    if not (limit.isdigit() and used.isdigit()):
        return None  # "max", or no such file at this level
    reclaimable = 0  # file pages the kernel drops before it lets anyone run out of memory
    for line in _read(folder / "memory.stat").splitlines():
        key, _, value = line.partition(" ")
        if key == names[2]:
            reclaimable = int(value)
    return int(limit), max(0, int(used) - reclaimable)


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
