"""Open and closed loops: who decides when the next request is sent.

Open: the workload's clock, whatever the server does, as users who do not know of each other. A slow server
then builds a queue, and the queue shows. Closed: k users, each of whom waits for an answer before asking
again, as workers of a batch job. A slow server then slows its own load down, and its latencies look better
than a crowd would find them.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from labcore.serving.load.client import Client, Dialect
from labcore.serving.metrics import RequestRecord
from labcore.serving.workload import Arrival, Workload

T = TypeVar("T")
TICK_S = 0.2  # between two looks at what runs in another thread
Clock = Callable[[], float]
OnRecord = Callable[[RequestRecord], None]
Loop = Literal["open", "closed"]


@dataclass(frozen=True)
class LoadRun:
    """One load test. Times in the records are seconds since it began (after warm-up)."""

    url: str
    model: str
    loop: Loop
    dialect: Dialect
    records: tuple[RequestRecord, ...]


def run_load(
    client: Client,
    workload: Workload,
    *,
    users: int | None = None,
    warmup: Sequence[Arrival] = (),
    on_record: OnRecord | None = None,
) -> LoadRun:
    """Load a server and wait for the last answer.

    users: that many in a closed loop, in the workload's order without its times; None: an open loop at its
    times. warmup: requests sent before, one after the other, and not recorded. on_record: told of each
    request as it ends. Works in a notebook too, whose own event loop goes on. Raises LoadTestError where no
    load test is possible, ValueError for less than one user.
    """
    if users is not None and users < 1:
        raise ValueError(f"{users} users ask for nothing; give at least 1.")
    return finish(_load(client, workload, users, warmup, on_record))


async def _load(
    client: Client,
    workload: Workload,
    users: int | None,
    warmup: Sequence[Arrival],
    on_record: OnRecord | None,
) -> LoadRun:
    async with opened(client, workload, warmup) as clock:
        if users is None:
            records = await open_loop(client, workload, clock, on_record)
        else:
            records = await closed_loop(client, workload, users, clock, on_record)
    loop: Loop = "open" if users is None else "closed"
    return LoadRun(client.url, client.model or "", loop, client.dialect, tuple(records))


@asynccontextmanager
async def opened(client: Client, workload: Workload, warmup: Sequence[Arrival] = ()) -> AsyncIterator[Clock]:
    """A client that is ready for a workload, and the clock of its load. Raises LoadTestError where no load is
    possible."""
    async with client:
        await client.prepare()
        client.require_room([*workload, *warmup])
        for arrival in warmup:
            await client.complete(arrival, 0.0, time.perf_counter)
        begin = time.perf_counter()
        yield lambda: time.perf_counter() - begin


async def open_loop(
    client: Client, workload: Workload, clock: Clock, on_record: OnRecord | None = None
) -> list[RequestRecord]:
    """Each request at its own time, counted from then even where it could only be sent later."""

    async def one(arrival: Arrival) -> RequestRecord:
        return _told(await client.complete(arrival, arrival.at_s, clock), on_record)

    async with asyncio.TaskGroup() as group:
        tasks = []
        for arrival in sorted(workload, key=lambda arrival: arrival.at_s):
            await asyncio.sleep(max(arrival.at_s - clock(), 0.0))
            tasks.append(group.create_task(one(arrival)))
    return [task.result() for task in tasks]


async def closed_loop(
    client: Client, workload: Workload, users: int, clock: Clock, on_record: OnRecord | None = None
) -> list[RequestRecord]:
    """Users take the next request of the workload when their last one is done, or has failed."""
    queue, records = iter(workload), []

    async def user() -> None:
        for arrival in queue:
            records.append(_told(await client.complete(arrival, clock(), clock), on_record))

    async with asyncio.TaskGroup() as group:
        for _ in range(users):
            group.create_task(user())
    return sorted(records, key=lambda record: record.start_s)


def _told(record: RequestRecord, on_record: OnRecord | None) -> RequestRecord:
    if on_record:
        on_record(record)
    return record


def finish(work: Coroutine[Any, Any, T], tick: Callable[[], object] | None = None) -> T:
    """Run a coroutine to its end, in a thread of its own where this one has a running loop or is to `tick`:
    called here every TICK_S until then.

    An interrupt (Ctrl-C, a notebook's stop button), or whatever `tick` raises, cancels it: connections are
    closed before that is raised.
    """
    if tick is None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(work)
    return _Beside(work).result(tick or (lambda: None))


class _Beside:
    """A coroutine on a loop in another thread."""

    def __init__(self, work: Coroutine[Any, Any, T]) -> None:
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(work)
        self._over = threading.Event()  # a join that an interrupt broke may count the thread as ended
        self._thread = threading.Thread(target=self._run, name="labcore-load-test", daemon=True)

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(asyncio.wait([self._task]))
        finally:
            self._over.set()

    def result(self, tick: Callable[[], object]) -> Any:
        try:
            self._thread.start()
            while not self._over.wait(TICK_S):  # in slices: an endless wait cannot be interrupted everywhere
                tick()
        except BaseException:
            if self._thread.ident is not None:  # it runs, even where its start was interrupted
                self._cancel()
                self._over.wait()
                self._thread.join()
            raise
        self._thread.join()  # it is over, and gone before anybody looks
        return self._task.result()

    def _cancel(self) -> None:
        with suppress(RuntimeError):  # the loop was closed meanwhile: there is nothing left to cancel
            self._loop.call_soon_threadsafe(self._task.cancel)
