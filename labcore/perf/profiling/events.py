"""One call of a function under PyTorch's profiler, as plain intervals of time."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, record_function

from labcore.errors import LabError
from labcore.perf.timing import synchronize

TRACES = 3
MARKER = "labcore::profiled_step"


@dataclass(frozen=True)
class Raw:
    """One event. Seconds count from the start of the step.

    thread: of the host; stream: of the device, None for what ran on the host. label: put there by
    `record_function`. loose: begun on one thread and ended on another, so nothing nests in it. id: of a host
    event; launched_by: the host event that a device event belongs to, 0 where that is not known.
    """

    name: str
    start: float
    end: float
    thread: int = 0
    stream: int | None = None
    label: bool = False
    loose: bool = False
    id: int = 0
    launched_by: int = 0


@dataclass(frozen=True)
class Traced:
    """The events of one call; it ran on host thread `thread` and took `seconds`."""

    events: tuple[Raw, ...]
    thread: int
    seconds: float


def trace(fn: Callable[[], object], device: torch.device, path: str | Path | None = None) -> Traced:
    """Call `fn` once under the profiler. path: where to write the Chrome trace, JSON.

    Raises LabError when a profiler is active already, when the device tells the profiler nothing, and when
    the trace cannot be written; what `fn` raises passes through with the profiler closed.
    """
    if torch.autograd._profiler_enabled():  # type: ignore[attr-defined]
        raise LabError(
            "A profiler is active already and PyTorch has room for one; leave its `with` block, or stop it, "
            "before calling profile()."
        )
    target = None if path is None else _writable(path)
    _warm_up(device)
    # The least disturbed of a few: one thread that waits for its core makes a whole trace worthless.
    recorded, traced = min(
        ((one, _plain(one)) for one in (_record(fn, device) for _ in range(TRACES))),
        key=lambda pair: pair[1].seconds,
    )
    if target is not None:
        _export(recorded, target)
    return traced


def _record(fn: Callable[[], object], device: torch.device) -> torch.profiler.profile:
    # Its start and stop messages would stand in the middle of a lesson; the variable is read at each start.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    synchronize(device)
    profiler = torch.profiler.profile(activities=activities, record_shapes=True)
    with profiler as recorded, record_function(MARKER):
        fn()
        synchronize(device)
    return recorded


def _warm_up(device: torch.device) -> None:
    """A first trace pays for starting the profiler, and shows whether the device tells it anything."""
    traced = _plain(_record(lambda: torch.zeros(1, device=device).add_(1), device))
    if device.type == "cuda":
        require_device_events(traced.events, device)


def require_device_events(events: tuple[Raw, ...], device: torch.device) -> None:
    """Raises LabError where a trace that launched kernels shows none."""
    if not any(event.stream is not None for event in events):
        raise LabError(
            f"The profiler saw 0 kernels on {device} though one was launched: the driver keeps its counters "
            "from this user (CUPTI_ERROR_INSUFFICIENT_PRIVILEGES); load the nvidia module with "
            "NVreg_RestrictProfilingToAdminUsers=0, run as administrator or in a container with "
            "CAP_SYS_ADMIN, or profile with device='cpu', which needs no privilege."
        )


def _plain(recorded: torch.profiler.profile) -> Traced:
    assert recorded.profiler is not None
    results = recorded.profiler.kineto_results
    assert results is not None
    host = torch._C._autograd.DeviceType.CPU
    marker = next(e for e in results.events() if e.name() == MARKER and e.device_type() == host)
    zero, thread = marker.start_ns(), marker.start_thread_id()
    seconds = marker.duration_ns() / 1e9
    # The device repeats the host's labels on its own clock; they are no work of its.
    real = (e for e in results.events() if e.name() != MARKER)
    real = (e for e in real if e.device_type() == host or not e.is_user_annotation())
    events = [_raw(e, zero, e.device_type() == host) for e in real]
    # What began after the step's last synchronisation, or ended before it began, is the profiler's own.
    within = tuple(event for event in events if event.end > 0 and event.start < seconds)
    return Traced(events=within, thread=thread, seconds=seconds)


def _raw(event: Any, zero: int, on_host: bool) -> Raw:
    start = (event.start_ns() - zero) / 1e9
    return Raw(
        name=event.name(),
        start=start,
        end=start + event.duration_ns() / 1e9,
        thread=event.start_thread_id(),
        stream=None if on_host else event.device_resource_id(),
        label=event.is_user_annotation(),
        loose=event.is_async(),
        id=event.correlation_id() if on_host else 0,
        launched_by=0 if on_host else event.linked_correlation_id(),
    )


def _writable(path: str | Path) -> Path:
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        new = not target.exists()
        with target.open("a", encoding="utf-8"):
            pass
        if new:  # a function that raises shall not leave an empty file behind
            target.unlink()
    except OSError as error:
        raise _unwritable(target, error) from None
    return target


def _export(recorded: torch.profiler.profile, target: Path) -> None:
    try:
        recorded.export_chrome_trace(str(target))
    except (OSError, RuntimeError) as error:
        raise _unwritable(target, error) from None


def _unwritable(target: Path, error: Exception) -> LabError:
    return LabError(f"The trace cannot be written to {target} ({error}); name a file in a folder of yours.")
