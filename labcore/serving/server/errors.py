"""Errors as OpenAI's API gives them: {"error": {"message", "type", "param", "code"}}, with their status."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from labcore.errors import LabError, NotFinite
from labcore.serving.async_engine import EngineStopped

SHOWN = 60  # characters of what was sent that a message repeats
_FORMS = {
    "prompt": "a text, a list of texts, a list of token ids or a list of such lists",
    "stop": "a text or a list of at most 16, each of at most 256 characters",
}


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
        return ApiError(503, str(error), code="engine_stopped")
    if isinstance(error, NotFinite):
        return ApiError(500, str(error), code="not_finite")
    return ApiError(400, str(error))


def error_body(error: ApiError) -> bytes:
    """As JSON in ASCII: what a client sent may hold halves of surrogate pairs, which UTF-8 cannot."""
    return json.dumps(ErrorAnswer(error=error.detail).model_dump()).encode()


def error_response(error: ApiError) -> Response:
    """The answer itself."""
    return Response(error_body(error), error.status, error.headers, media_type="application/json")


def install(app: FastAPI) -> None:
    """Have everything that goes wrong in an app answered in this form."""
    app.add_exception_handler(LabError, _on_lab_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_bug)


async def _on_lab_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, LabError)
    return error_response(as_api_error(error))


async def _on_invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(_invalid(error.errors()))


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = {
        404: f"There is no {request.url.path!r} here; ask for /v1/models, /v1/completions or "
        "/v1/chat/completions.",
        405: f"{request.url.path!r} does not take {request.method!r}; models are fetched with GET, answers "
        "asked for with POST.",
    }.get(error.status_code, f"The request could not be read ({error.detail}); send JSON.")
    return error_response(ApiError(error.status_code, message, headers=error.headers))


async def _on_bug(_: Request, error: Exception) -> Response:
    message = f"The server failed ({type(error).__name__}); its log has the traceback."
    return error_response(ApiError(500, message))


def _invalid(problems: Sequence[Any]) -> ApiError:
    """The first problem of a body, as one sentence."""
    problem = problems[0]
    where = [part for part in problem["loc"] if part != "body"]
    if problem["type"] == "json_invalid":
        reason = problem.get("ctx", {}).get("error", "it ends too early")
        place = where[0] if where else 0
        return ApiError(400, f"The body is not JSON ({reason}, at character {place}); mend it there.")
    if not where:
        if problem["type"] == "value_error":
            return ApiError(400, problem["msg"].removeprefix("Value error, "))
        return ApiError(400, "The body must be a JSON object, sent with Content-Type: application/json.")
    param = str(where[0])
    if problem["type"] == "extra_forbidden":
        return ApiError(400, f"{param!r} is no setting of this server; leave it out.", param=param)
    if problem["type"] == "missing":
        return ApiError(400, f"{_path(where)} is missing; give it.", param=param)
    said = problem["msg"].removeprefix("Value error, ")
    sent = repr(problem.get("input"))
    shown = sent if len(sent) <= SHOWN else sent[:SHOWN] + "…"
    if param in _FORMS:  # several types would do, and pydantic speaks of each
        return ApiError(400, f"{param} holds {shown}; give {_FORMS[param]}.", param=param)
    return ApiError(400, f"{_path(where)} is {shown}: {said[:1].lower()}{said[1:]}.", param=param)


def _path(where: Sequence[Any]) -> str:
    """Such as messages[0].content."""
    path = ""
    for part in where:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return ascii(path.lstrip("."))[1:-1]
