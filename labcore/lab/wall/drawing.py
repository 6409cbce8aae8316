"""The wall's drawing, apart from its answers: one at a time, and meanwhile the last one is shown."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

PATIENCE_S = 1.0  # so long a reader waits for the newest drawing before the last one is shown


@dataclass(frozen=True)
class Drawn:
    """A drawing and the version of the entries that it shows."""

    version: str
    body: bytes


class Drawing:
    """Draws on a thread whenever the entries have changed. For one event loop.

    draw: makes the drawing of a version; however many ask meanwhile, it runs once at a time.
    """

    def __init__(self, draw: Callable[[str], bytes]) -> None:
        self._draw = draw
        self._last: Drawn | None = None
        self._task: asyncio.Task[Drawn] | None = None

    async def latest(self, version: str) -> Drawn:
        """The drawing of this version, or the last one where drawing takes longer than PATIENCE_S.

        The first is waited for. Raises what drawing raises.
        """
        if self._last is not None and self._last.version == version:
            return self._last
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._make(version))
        await asyncio.wait({self._task}, timeout=None if self._last is None else PATIENCE_S)
        return self._task.result() if self._task.done() or self._last is None else self._last

    async def _make(self, version: str) -> Drawn:
        self._last = Drawn(version, await asyncio.to_thread(self._draw, version))
        return self._last
