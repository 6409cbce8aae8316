"""Letters between a worker's thread and others: commands to it, and items back to tasks of event loops."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from labcore.errors import LabError

T = TypeVar("T")


class Commands:
    """What a thread is asked to do. Others `ask`, it obeys; once it is closed, every command is refused."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        self._reason: Callable[[], Exception] | None = None

    def open(self) -> None:
        """Commands will be obeyed again."""
        self._reason = None

    def close(self, reason: Callable[[], Exception]) -> None:
        """Refuse what waits and what will come. reason: makes the error."""
        self._reason = reason
        while True:
            try:
                _, future = self._queue.get_nowait()
            except Empty:
                return
            if future.set_running_or_notify_cancel():
                future.set_exception(reason())

    def ask(self, act: Callable[[], T]) -> Future[T]:
        """Have the thread do something; the future holds what came of it."""
        future: Future[T] = Future()
        self._queue.put((act, future))
        if (reason := self._reason) is not None:  # perhaps after the thread's last look into the queue
            self.close(reason)
        return future

    def obey_next(self, wait_s: float | None) -> bool:
        """Obey one command; False where none came within wait_s (None: wait for ever). On the thread.

        A LabError or ValueError is an answer and goes into the future; any other ends the thread as well.
        """
        try:
            act, future = self._queue.get_nowait() if wait_s == 0 else self._queue.get(timeout=wait_s)
        except Empty:
            return False
        if not future.set_running_or_notify_cancel():
            return True
        try:
            future.set_result(act())
        except BaseException as error:
            future.set_exception(error)
            if not isinstance(error, (LabError, ValueError)):
                raise
        return True


@dataclass(eq=False)
class Inbox:
    """Where a task, in the event loop in which this was made, waits for items."""

    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    queue: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)


def post(mail: Sequence[tuple[Inbox, Any]]) -> list[Inbox]:
    """Deliver from another thread, one wake-up per event loop. Returns the inboxes whose loop was closed."""
    letters = defaultdict(list)
    for inbox, letter in mail:
        letters[inbox.loop].append((inbox, letter))
    lost = []
    for loop, batch in letters.items():
        try:
            loop.call_soon_threadsafe(_put, batch)
        except RuntimeError:  # the loop is closed
            lost += [inbox for inbox, _ in batch]
    return lost


def _put(batch: Sequence[tuple[Inbox, Any]]) -> None:
    for inbox, letter in batch:
        inbox.queue.put_nowait(letter)
