"""A server that speaks OpenAI's completions API over a real socket and does what a test tells it to."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

PROBE_MAX_TOKENS = 2  # what `Client.prepare` asks for; workloads in these tests ask for other numbers


def ok(_: int) -> str:
    return "ok"


class FakeServer:
    """behave: number of a request (from 0, the probe left out) -> ok, 500, 429, disconnect, hang, garbage,
    error, empty. refuses: fields that it answers 400 to ("ids": prompts as tokens). together: so many
    requests are answered only when all of them are there."""

    def __init__(
        self,
        behave: Callable[[int], str] = ok,
        *,
        models: tuple[str, ...] = ("fake",),
        key: str | None = None,
        refuses: tuple[str, ...] = (),
        usage: bool = True,
        together: int = 1,
        max_model_len: int | None = None,
    ) -> None:
        self.behave, self.models, self.key, self.refuses = behave, models, key, refuses
        self.usage, self.together, self.max_model_len = usage, together, max_model_len
        self.bodies: list[dict[str, Any]] = []
        self.in_flight = self.peak = 0

    def __enter__(self) -> FakeServer:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(self._app(), log_level="critical", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.005)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()

    def _app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/v1/models")
        async def models(request: Request) -> Response:
            if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
                return _error(401, "wrong key")
            extra = {"max_model_len": self.max_model_len} if self.max_model_len else {}
            return JSONResponse({"object": "list", "data": [{"id": name, **extra} for name in self.models]})

        @app.post("/v1/completions")
        async def completions(request: Request) -> Response:
            return await self._complete(await request.json())

        return app

    async def _complete(self, body: dict[str, Any]) -> Response:
        for name in self.refuses:
            if name in body or (name == "ids" and isinstance(body["prompt"], list)):
                return _error(400, f"unknown argument {name}: [red]no[/red]")
        if body["max_tokens"] == PROBE_MAX_TOKENS:
            return StreamingResponse(self._stream(body, "ok"), media_type="text/event-stream")
        number = len(self.bodies)
        self.bodies.append(body)
        behaviour = self.behave(number)
        if behaviour == "429":
            return _error(429, "too many requests", {"Retry-After": "0"})
        if behaviour == "500":
            return _error(500, "out of cheese")
        return StreamingResponse(self._tracked(body, behaviour), media_type="text/event-stream")

    async def _tracked(self, body: dict[str, Any], behaviour: str) -> AsyncIterator[str]:
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            if self.together > 1:
                if not hasattr(self, "_barrier"):
                    self._barrier = asyncio.Barrier(self.together)
                await self._barrier.wait()
            async for event in self._stream(body, behaviour):
                yield event
        finally:
            self.in_flight -= 1

    async def _stream(self, body: dict[str, Any], behaviour: str) -> AsyncIterator[str]:
        count = 0 if behaviour == "empty" else body["max_tokens"]
        for index in range(count):
            if index == 2 and behaviour == "disconnect":
                raise ConnectionResetError
            if index == 2 and behaviour == "hang":
                await asyncio.sleep(3600)
            if index == 2 and behaviour == "garbage":
                yield "data: {not json\n\n"
            if index == 2 and behaviour == "error":
                yield 'data: {"error": {"message": "engine died"}}\n\n'
            yield _event({"choices": [{"index": 0, "text": " x\u2028", "finish_reason": None}]})
            await asyncio.sleep(0.001)
        yield _event({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]})
        if self.usage and "stream_options" in body:
            yield _event(
                {"choices": [], "usage": {"prompt_tokens": len(body["prompt"]), "completion_tokens": count}}
            )
        yield "data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": {"message": message}}, status_code=status, headers=headers)
