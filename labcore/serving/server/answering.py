"""An answer that is made while it is sent: the engine's requests run inside of it, and end with it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from labcore.errors import CacheFull, LabError, PromptError
from labcore.serving.async_engine import AsyncLLMEngine
from labcore.serving.requests import Request, RequestOutput
from labcore.serving.server.errors import ApiError, as_api_error, error_body, no_panic, stopping_error
from labcore.serving.server.forms import Choice, Form, usage_of
from labcore.serving.server.limits import Gate
from labcore.serving.server.logprobs import Speller
from labcore.tokenizer import Tokenizer

START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")],
}
DONE = b"data: [DONE]\n\n"


class Answering(Response):
    """Prepares requests, runs them and sends what comes of them, whole or as server-sent events.

    Nothing is sent before the first token, so that whatever goes wrong until then has a status of its own;
    what goes wrong later ends a stream with an event that holds the error. If the client leaves, the requests
    are aborted. places: how many requests `prepare` will give; they are taken before. param: the client's
    name for the prompts. per_prompt: how many of the requests share a prompt.
    """

    def __init__(
        self,
        engine: AsyncLLMEngine,
        gate: Gate,
        timeout_s: float,
        prepare: Callable[[], Awaitable[Sequence[Request]]],
        form: Form,
        *,
        places: int,
        param: str,
        stream: bool,
        per_prompt: int,
        tokenizer: Tokenizer | None,
    ) -> None:
        super().__init__()
        self._engine, self._gate, self._timeout_s = engine, gate, timeout_s
        self._prepare, self._form, self._places, self._param = prepare, form, places, param
        self._streams, self._per_prompt, self._tokenizer = stream, per_prompt, tokenizer
        self._choices: dict[str, Choice] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await while_connected(receive, self._answer(scope, receive, send))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        with no_panic():  # which would end the task it is raised in, and with it the server
            await (self._stream(send) if self._streams else self._whole(scope, receive, send))

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._outputs() as outputs:
            async for output in outputs:
                self._take(output)
        choices = list(self._choices.values())
        answer = self._form.whole(choices, usage_of(choices, self._per_prompt))
        await Response(answer.model_dump_json(), media_type="application/json")(scope, receive, send)

    async def _stream(self, send: Send) -> None:
        begun = False
        try:
            async with self._outputs() as outputs:
                async for output in outputs:
                    events = b"".join(map(_event, self._form.chunks(self._take(output), output)))
                    if not begun:
                        begun = True
                        await send(START)
                    await _send_part(send, events)
            tail = b""
            if self._form.usage:
                choices = list(self._choices.values())
                tail = _event(self._form.tail(usage_of(choices, self._per_prompt)))
        except LabError as error:
            if not begun:
                raise
            tail = b"data: " + error_body(as_api_error(error)) + b"\n\n"
        await _send_part(send, tail + DONE, more=False)

    @asynccontextmanager
    async def _outputs(self) -> AsyncIterator[AsyncGenerator[RequestOutput, None]]:
        """The outputs of all requests. Raises ApiError where places or time are too few for them."""
        self._engine.ensure_accepting()
        with self._gate.hold(self._places, "n" if self._per_prompt > 1 else self._param):
            try:
                async with asyncio.timeout(self._timeout_s):
                    requests = await self._prepare()
                    for index, request in enumerate(requests):
                        self._choices[request.id] = Choice(index, Speller(self._tokenizer, request.prompt))
                    async with aclosing(self._engine.generate_all(requests)) as outputs:
                        yield outputs
            except (PromptError, CacheFull) as error:
                raise ApiError(400, str(error), param=self._param) from None
            except TimeoutError:
                made = sum(len(choice.tokens) for choice in self._choices.values())
                raise ApiError(
                    504,
                    f"After {self._timeout_s:g} s the answer had {made} tokens and was ended; ask for fewer, "
                    "or when there is less to do.",
                    code="timeout",
                ) from None

    def _take(self, output: RequestOutput) -> Choice:
        choice = self._choices[output.id]
        if output.finish_reason == "abort":
            raise stopping_error(
                f"This request was ended after {output.num_output_tokens} tokens, as the server is being "
                "shut down; ask again later.",
                code="aborted",
            )
        choice.take(output)
        return choice


async def while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do the work; cancel it when the client leaves. Raises what it raises."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)
    if not task.cancelled():
        task.result()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_part(send: Send, body: bytes, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"
