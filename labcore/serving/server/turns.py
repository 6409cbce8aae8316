"""Long bodies are read one after another, so that between two of them everybody else has a turn."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

LONG_BODY = 20_000  # bytes


class Turns:
    """Whose turn it is. `start` it in the event loop that will ask."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    def start(self) -> None:
        """Begin anew: a lock belongs to one event loop."""
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """Wait until nobody else has it, and let the event loop do first what waits.

        Meanwhile no garbage is collected: the many lists of a body would have the collector look at all there
        is again and again, ten times the work of reading.
        """
        async with self._lock:
            await asyncio.sleep(0)
            enabled = gc.isenabled()
            gc.disable()
            try:
                yield
            finally:
                if enabled:
                    gc.enable()

    def route_class(self) -> type[APIRoute]:
        """Routes that read a long body, check it and begin the answer in a turn of their own."""
        take = self.take

        class InTurn(APIRoute):
            def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
                handle = super().get_route_handler()

                async def in_turn(request: Request) -> Response:
                    if len(await request.body()) <= LONG_BODY:
                        return await handle(request)
                    async with take():
                        return await handle(request)

                return in_turn

        return InTurn
