"""An engine on a thread of its own, asked from asyncio.

The engine is single-threaded and stays so: everything that is done to it, from `add` to `step`, one thread
does. Others give that thread commands, which it obeys between two steps (so an abort frees its blocks before
the next one); what a step gave travels back with one wake-up per event loop. Without work the thread sleeps.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial
from typing import Protocol

from labcore.errors import LabError
from labcore.serving.events import EngineStats, StepEvent
from labcore.serving.mailbox import Commands, Inbox, post
from labcore.serving.requests import Request, RequestOutput

PAUSE_S = 0.001  # between two looks at an engine that has work and waits for more (a dynamic batch)
POLL_S = 0.01  # between two looks at what still runs, while draining
JOIN_S = 60.0  # for the longest step

log = logging.getLogger(__name__)


class EngineStopped(LabError):
    """The engine takes no requests: its thread died, it was closed, or it is about to be."""


class Engine(Protocol):
    """What is needed of an engine; `LLMEngine` is one."""

    clock: Callable[[], float]

    def add(self, request: Request) -> None: ...
    def abort(self, id: str) -> RequestOutput | None: ...
    def step(self) -> list[RequestOutput]: ...
    @property
    def has_work(self) -> bool: ...
    @property
    def stats(self) -> EngineStats: ...
    @property
    def last_event(self) -> StepEvent | None: ...


class Watcher(Protocol):
    """Told of everything that happens, on the engine's thread: what it does, the next step waits for."""

    def arrived(self, request: Request) -> None:
        """A request was taken; its arrival_s is set."""

    def stepped(self, event: StepEvent | None, outputs: Sequence[RequestOutput]) -> None:
        """A step was made (event None: requests were aborted between two steps)."""


class AsyncLLMEngine:
    """An engine that many tasks, of any event loop, can ask at once. `start` it; `close` it, or use `with`.

    watchers: told of every request and step. While it is open nobody else may call the engine.
    """

    def __init__(self, engine: Engine, watchers: Sequence[Watcher] = ()) -> None:
        self._engine = engine
        self._watchers = tuple(watchers)
        self._commands = Commands()
        self._commands.close(self._reason)
        self._inboxes: dict[str, Inbox] = {}  # of requests that the engine has not finished
        self._thread: threading.Thread | None = None
        self._stats = engine.stats
        self._event = engine.last_event
        self._failure: BaseException | None = None
        self._ended = True
        self._closing = self._draining = self._hurry = self._paused = False

    # Life

    def start(self) -> None:
        """Begin to work. Raises EngineStopped where the engine failed before; a closed one begins anew."""
        if self.healthy:
            return
        if self._failure is not None:
            raise self._reason()
        self._ended = self._closing = self._draining = self._hurry = self._paused = False
        self._commands.open()
        self._thread = threading.Thread(target=self._run, name="labcore-engine", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # a daemon thread must not be inside torch when the interpreter goes

    def close(self) -> None:
        """End the thread after the step it is in. Those who wait get EngineStopped; no block stays held."""
        atexit.unregister(self.close)
        if self._thread is None or threading.current_thread() is self._thread:
            return
        self._commands.ask(self._stop)
        self._thread.join(JOIN_S)

    def __enter__(self) -> AsyncLLMEngine:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def healthy(self) -> bool:
        """Whether its thread lives."""
        return not self._ended

    @property
    def accepting(self) -> bool:
        """Whether it takes new requests."""
        return self.healthy and not self._draining

    @property
    def stats(self) -> EngineStats:
        """Where the engine stood after its last step or command."""
        return self._stats

    @property
    def unfinished(self) -> int:
        """Requests that somebody waits for."""
        return len(self._inboxes)

    async def drain(self, timeout_s: float) -> int:
        """Take no new requests, wait until those that run are done, abort what is left after timeout_s.

        Returns how many were aborted; those who wait for them get an output that says so.
        """
        self._draining = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while self._inboxes and self.healthy and not self._hurry and loop.time() < deadline:
            await asyncio.sleep(POLL_S)
        left = list(self._inboxes)
        with suppress(EngineStopped):
            await asyncio.wrap_future(self._commands.ask(partial(self._abort_all, left)))
        return len(left)

    def hurry(self) -> None:
        """Let a `drain` that waits abort at once. May be called by a signal's handler."""
        self._hurry = True

    # Requests

    async def generate(self, request: Request) -> AsyncGenerator[RequestOutput, None]:
        """The outputs of one request as they come, the last one finished. See `generate_all`."""
        async with aclosing(self.generate_all([request])) as outputs:
            async for output in outputs:
                yield output

    async def generate_all(self, requests: Sequence[Request]) -> AsyncGenerator[RequestOutput, None]:
        """The outputs of several requests in the order in which they come, until all are finished.

        Leaving early (a break with `aclosing`, a cancelled task) aborts what is not finished. Raises
        EngineStopped where the engine takes none or dies, what `LLMEngine.add` raises: then none runs; and
        the error of a request that cannot go on, which ends the others.
        """
        self.ensure_accepting()
        inbox = Inbox()
        open_ids = {request.id for request in requests}
        if len(open_ids) < len(requests) or any(id in self._inboxes for id in open_ids):
            raise ValueError("The id of a request is in use; give each its own.")
        self._inboxes.update(dict.fromkeys(open_ids, inbox))
        try:
            add = partial(self._add_all, requests, self._engine.clock())
            await asyncio.wrap_future(self._commands.ask(add))
            while open_ids:
                output = await inbox.queue.get()
                if isinstance(output, EngineStopped):
                    raise output
                if output.finished:
                    open_ids.discard(output.id)
                if output.error is not None:
                    raise output.error
                yield output
        finally:
            for id in open_ids:
                self._inboxes.pop(id, None)
            if open_ids and self.healthy:
                self._commands.ask(partial(self._abort_all, list(open_ids)))

    def abort(self, id: str) -> None:
        """End a request before the next step; whoever waits for it gets an output that says so."""
        self._commands.ask(partial(self._abort_all, [id]))

    def ensure_accepting(self) -> None:
        if not self.healthy:
            raise self._reason()
        if self._draining:
            raise EngineStopped("The engine is being shut down and takes no new requests; try again later.")

    def _reason(self) -> EngineStopped:
        """Why there is no thread."""
        if self._failure is not None:
            what = f"{type(self._failure).__name__}: {self._failure}".rstrip(".")
            return EngineStopped(f"The engine failed at step {self._stats.steps} ({what}); make a new one.")
        if self._thread is None:
            return EngineStopped("The engine has not been started; call start().")
        return EngineStopped("The engine was closed; start it again and repeat the request.")

    # On the engine's thread

    def _run(self) -> None:
        try:
            while not self._closing:
                if not self._commands.obey_next(self._patience()):
                    self._step()
                    continue
                self._stats = self._engine.stats
        except BaseException as error:  # whatever ended it: those who wait must hear of it
            self._failure = error
            log.exception("The engine's thread ended.")
        finally:
            self._end()

    def _patience(self) -> float | None:
        """How long a command is waited for before the next step, in seconds; None: there is nothing to do."""
        if not self._engine.has_work:
            return None
        return PAUSE_S if self._paused else 0

    def _step(self) -> None:
        outputs = self._engine.step()
        event, before = self._engine.last_event, self._event
        self._event, self._stats = event, self._engine.stats
        self._paused = event is before
        self._tell(None if event is before else event, outputs)

    def _add_all(self, requests: Sequence[Request], now: float) -> None:
        """All or none. now: when they arrived, which may be a step ago."""
        arrived = [replace(one, arrival_s=now) if one.arrival_s is None else one for one in requests]
        added: list[str] = []
        try:
            for request in arrived:
                self._engine.add(request)
                added.append(request.id)
        except BaseException:
            for id in added:
                self._engine.abort(id)
            raise
        for watcher in self._watchers:
            for request in arrived:
                watcher.arrived(request)

    def _abort_all(self, ids: Sequence[str]) -> None:
        outputs = [output for id in ids if (output := self._engine.abort(id)) is not None]
        self._stats = self._engine.stats
        if outputs:
            self._tell(None, outputs)

    def _stop(self) -> None:
        self._closing = True

    def _tell(self, event: StepEvent | None, outputs: Sequence[RequestOutput]) -> None:
        for watcher in self._watchers:
            watcher.stepped(event, outputs)
        mail = [(inbox, one) for one in outputs if (inbox := self._inboxes.get(one.id)) is not None]
        for output in outputs:
            if output.finished:
                self._inboxes.pop(output.id, None)
        if lost := post(mail):
            self._forget(lost)

    def _forget(self, lost: Sequence[Inbox]) -> None:
        """Abort what nobody can receive any more, because the event loop that asked was closed."""
        ids = [id for id, inbox in dict(self._inboxes).items() if inbox in lost]
        for id in ids:
            self._inboxes.pop(id, None)
        self._abort_all(ids)

    def _end(self) -> None:
        """Whoever waits gets an error, and an engine that did not fail its blocks back."""
        self._ended = True
        left = dict(self._inboxes)
        self._inboxes.clear()
        self._commands.close(self._reason)
        post([(inbox, self._reason()) for inbox in set(left.values())])
        if self._failure is None:
            self._abort_all(list(left))
