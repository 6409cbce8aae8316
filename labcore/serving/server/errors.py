"""Errors as OpenAI's API gives them: {"error": {"message", "type", "param", "code"}}, with their status."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from fastapi import FastAPI, Request
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from labcore.errors import LabError, NotFinite
from labcore.serving.async_engine import EngineStopped

SHOWN = 60  # characters of what was sent that a message repeats
BACK_AFTER_S = 5  # until a server that stops may have a successor


class ErrorDetail(BaseModel):
    """What is wrong, and how to mend it. param: the setting it is about. code: for programs."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


class ApiError(LabError):
    """An answer other than the one that was asked for."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        self.detail = ErrorDetail(message=message, type=_type_of(status), param=param, code=code)


def _type_of(status: int) -> str:
    if status == 429:
        return "requests"
    return "invalid_request_error" if status < 500 else "server_error"


def as_api_error(error: LabError) -> ApiError:
    """What the engine says, as an answer."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, EngineStopped):
        return stopping_error(str(error), code="engine_stopped")
    if isinstance(error, NotFinite):
        return ApiError(500, str(error), code="not_finite")
    return ApiError(400, str(error))


def stopping_error(message: str, code: str) -> ApiError:
    """503, and when another server may be there."""
    return ApiError(503, message, code=code, headers={"Retry-After": str(BACK_AFTER_S)})


def shortened(text: str) -> str:
    """As much of what was sent as a message repeats."""
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def error_body(error: ApiError) -> bytes:
    """As JSON in ASCII: what a client sent may hold halves of surrogate pairs, which UTF-8 cannot."""
    return json.dumps(ErrorAnswer(error=error.detail).model_dump()).encode()


def error_response(error: ApiError) -> Response:
    """The answer itself."""
    return Response(error_body(error), error.status, error.headers, media_type="application/json")


class Panic(Exception):
    """Stands for what no handler of errors would catch; its cause tells what it was."""


@contextmanager
def no_panic() -> Iterator[None]:
    """What is no `Exception` (a library's panic, a sys.exit) becomes one, and fails its request alone."""
    try:
        yield
    except (Exception, asyncio.CancelledError, GeneratorExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise Panic(str(error)) from error


class NoPanic:
    """`no_panic` around an app."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with no_panic():
            await self._app(scope, receive, send)


def install(app: FastAPI) -> None:
    """Have everything that goes wrong in an app answered in this form, but for bodies; see `invalid`."""
    app.add_middleware(NoPanic)
    app.add_exception_handler(LabError, _on_lab_error)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_bug)


async def _on_lab_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, LabError)
    return error_response(as_api_error(error))


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path, method = shortened(request.url.path), shortened(request.method)
    message = {
        404: f"There is no {path!r} here; ask for /v1/models, /v1/completions or /v1/chat/completions.",
        405: f"{path!r} does not take {method!r}; models are fetched with GET, answers asked for with POST.",
    }.get(error.status_code, f"The request could not be read ({error.detail}); send JSON.")
    return error_response(ApiError(error.status_code, message, headers=error.headers))


async def _on_bug(_: Request, error: Exception) -> Response:
    cause = error.__cause__ if isinstance(error, Panic) else error
    message = f"The server failed ({type(cause).__name__}); its log has the traceback."
    return error_response(ApiError(500, message))
