"""Processes that work together on one model, started from wherever Python runs, and never left behind.

A notebook or a test starts them, hands them functions of installed modules, and gets what each rank returned.
They die with the process that started them however that ends: a thread in each waits at a pipe whose other
end only the parent holds, and on Linux the kernel itself is asked to end them.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from labcore.errors import DeviceError, LabError, ParallelError
from labcore.perf.machine import resolve_device

_READY = "ready"


class Workers:
    """`ranks` processes in one group of `torch.distributed`: gloo on a CPU, NCCL with a GPU each.

    threads: of each worker on a CPU (default: the cores, shared out). timeout_s: how long a call may take.
    Raises ParallelError for fewer than one rank or too few GPUs, DeviceError for a device that is not here.
    """

    def __init__(
        self,
        ranks: int = 2,
        *,
        device: str = "cpu",
        threads: int | None = None,
        timeout_s: float = 300.0,
    ) -> None:
        self.ranks, self.timeout_s = ranks, timeout_s
        self.device = _checked(ranks, device)
        self.threads = threads or max(1, (os.cpu_count() or 1) // ranks)
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        self._closed = False
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        context = mp.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory(prefix="labcore-ranks-")
        meeting = (Path(self._folder.name) / "meeting").as_uri()
        # Linux ends a child with the *thread* that made it: only the main one lives as long as the process
        parent = os.getpid() if threading.current_thread() is threading.main_thread() else None
        with _no_main():
            for rank in range(self.ranks):
                mine, theirs = context.Pipe()
                arguments = (rank, self.ranks, self.device.type, self.threads, meeting, parent, theirs)
                process = context.Process(target=_serve, args=arguments, daemon=True)
                process.start()
                theirs.close()
                self._processes.append(process)
                self._pipes.append(mine)
        try:
            self._collect("start")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, fn: Callable[..., Any], *args: Any) -> list[Any]:
        """fn(rank, *args) on every rank, at once; what each returned, by rank.

        fn must be importable where the workers are (a function of a module, not of a notebook). Raises
        ParallelError where a rank fails, dies, or takes longer than timeout_s: all workers are ended then.
        """
        if self._closed or not self._processes:
            raise ParallelError("These workers have ended; start new ones with `with Workers(...)`.")
        try:
            for pipe in self._pipes:
                self._send(pipe, fn, args)
            return self._collect(getattr(fn, "__name__", "the call"))
        except BaseException:  # an interrupt too: ranks that are half way are of no further use
            self.close()
            raise

    def _send(self, pipe: Connection, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # told later, with the exit code
                pipe.send((fn, args))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ParallelError(
                f"{getattr(fn, '__name__', fn)!r} and its arguments cannot be sent to {self.ranks} ranks "
                f"({error}); give a function of an importable module, and plain data."
            ) from error

    def close(self) -> None:
        """End all workers now."""
        self._closed = True
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            if process.is_alive():
                process.kill()
        for process in self._processes:
            process.join()
        if self._folder is not None:
            self._folder.cleanup()

    @property
    def pids(self) -> list[int]:
        """Process ids, by rank."""
        return [process.pid for process in self._processes]

    def _collect(self, what: str) -> list[Any]:
        """One message of every rank. The first that fails or dies ends the waiting."""
        answers: dict[int, Any] = {}
        deadline = time.monotonic() + self.timeout_s
        while len(answers) < self.ranks:
            waiting = [rank for rank in range(self.ranks) if rank not in answers]
            sources: dict[Any, int] = {self._pipes[rank]: rank for rank in waiting}
            sources |= {self._processes[rank].sentinel: rank for rank in waiting}
            ready = wait(list(sources), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                raise ParallelError(
                    f"Rank {waiting[0]} of {self.ranks} did not finish {what} within {self.timeout_s:g} s; "
                    "all workers were ended. Allow more with timeout_s, or ask for less."
                )
            for rank in {sources[source] for source in ready}:
                ok, value = self._answer(rank)
                if not ok:
                    raise ParallelError(self._failure(rank, value, set(waiting) - {rank}, what))
                answers[rank] = value
        return [answers[rank] for rank in range(self.ranks)]

    def _answer(self, rank: int) -> tuple[bool, Any]:
        """(True, what it returned), or (False, what went wrong)."""
        try:
            answer: tuple[bool, Any] = self._pipes[rank].recv()
            return answer
        except (EOFError, OSError):
            self._processes[rank].join(5)
            code = self._processes[rank].exitcode
            how = f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"
            return False, f"it died ({how})"

    def _failure(self, rank: int, value: str, others: set[int], what: str) -> str:
        """Who began it: a rank that waits for another complains of a lost connection, and maybe sooner."""
        told = {rank: value}
        deadline = time.monotonic() + 1.0
        while others and (left := deadline - time.monotonic()) > 0:
            for source in wait([self._pipes[one] for one in others], timeout=left):
                one = self._pipes.index(source)  # type: ignore[arg-type]
                others.discard(one)
                ok, value = self._answer(one)
                if not ok:
                    told[one] = value
        first = min(told, key=lambda one: _LOST.search(told[one]) is not None)
        return (
            f"Rank {first} of {self.ranks} failed in {what}: {told[first].rstrip('.')}; all workers were "
            "ended with it, start new ones to go on."
        )


# How gloo and NCCL complain of a peer that is gone.
_LOST = re.compile(r"connection|peer|gloo|nccl|socket", re.IGNORECASE)


def _checked(ranks: int, device: str) -> torch.device:
    if ranks < 1:
        raise ParallelError(f"{ranks} ranks cannot work; ask for at least 1.")
    found = resolve_device(device)
    if found.type not in ("cpu", "cuda"):
        raise DeviceError(f"Ranks do not talk over {found.type!r} devices; use device='cpu' or 'cuda'.")
    if found.type == "cuda" and ranks > torch.cuda.device_count():
        raise ParallelError(
            f"{ranks} ranks need a GPU each and {torch.cuda.device_count()} are here; "
            "take fewer ranks, or device='cpu'."
        )
    return found


@contextmanager
def _no_main() -> Iterator[None]:
    """Spawned processes run the parent's main script again to find its functions. A notebook or a test runner
    has nothing there that a worker needs, so it is hidden while they start."""
    main = vars(sys.modules["__main__"])
    file, spec = main.pop("__file__", None), main.get("__spec__")
    main["__spec__"] = None
    try:
        yield
    finally:
        main["__spec__"] = spec
        if file is not None:
            main["__file__"] = file


# In a worker


def _serve(
    rank: int, ranks: int, device: str, threads: int, meeting: str, parent: int | None, pipe: Connection
) -> None:
    """Join the group, then run what comes through the pipe until its other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Jupyter interrupts children too; the parent decides
    if parent is not None:
        die_with(parent)
    torch.set_num_threads(threads)
    inbox = _Inbox(pipe)
    try:
        _join(rank, ranks, device, meeting)
        pipe.send((True, _READY))
        while True:
            fn, args = inbox.next()
            pipe.send((True, fn(rank, *args)))
    except BaseException as error:
        told = str(error) if isinstance(error, LabError) else _last_line(error)
        with suppress(OSError):
            pipe.send((False, told))
    finally:
        os._exit(0)  # without the clean-up that would wait for ranks that are gone


def _join(rank: int, ranks: int, device: str, meeting: str) -> None:
    if device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        init_method=meeting,
        rank=rank,
        world_size=ranks,
        timeout=timedelta(hours=1),  # the parent watches, and ends everyone sooner
    )


def _last_line(error: BaseException) -> str:
    return traceback.format_exception_only(error)[-1].strip().splitlines()[0]


class _Inbox:
    """Reads the pipe on a thread of its own, so that the parent's end closing is noticed in the middle of
    work: then the process ends at once."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._items, self._there = pipe, [], threading.Semaphore(0)  # type: ignore[var-annotated]
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                item = self._pipe.recv()
            except (EOFError, OSError):
                os._exit(0)
            except BaseException as error:  # what was sent cannot be found here
                item = (_raise, (_last_line(error),))
            self._items.append(item)
            self._there.release()

    def next(self) -> Any:
        """The next call; waits for it."""
        self._there.acquire()
        return self._items.pop(0)


def _raise(rank: int, message: str) -> None:
    raise ParallelError(message)


def die_with(parent: int) -> None:
    """Ask Linux to kill this process when its parent ends, and notice if that has happened already."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(0)
