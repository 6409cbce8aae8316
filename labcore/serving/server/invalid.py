"""What is wrong with a body, as one sentence that names the setting by its path."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from labcore.serving.server.errors import SHOWN, ApiError, error_response, shortened

_FORMS = {
    "prompt": "a text, a list of texts, a list of token ids or a list of such lists",
    "stop": "a text or a list of at most 16, each of at most 256 characters",
}


class _Repr(reprlib.Repr):
    """Of values of any size and depth, in time and space that their size does not matter to."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = SHOWN
        self.maxlevel = 3


def refusal(said: str, *path: str | int) -> PydanticCustomError:
    """For validators to raise. said: what follows the name of the setting. path: where it is in the value."""
    return PydanticCustomError("refused", "{said}", {"said": said, "path": path})


def install(app: FastAPI) -> None:
    """Have a body that is refused answered in OpenAI's form of errors."""
    app.add_exception_handler(RequestValidationError, _on_invalid)


async def _on_invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(as_error(error.errors()))


def as_error(problems: Sequence[Any]) -> ApiError:
    """The first problem of a body."""
    problem = problems[0]
    where = [part for part in problem["loc"] if part != "body"]
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "json_invalid":
        reason = context.get("error", "it ends too early")
        place = where[0] if where else 0
        return ApiError(400, f"The body is not JSON ({reason}, at character {place}); mend it there.")
    if kind == "refused":
        where += context["path"]
    if not where:
        return ApiError(400, "The body must be a JSON object, sent with Content-Type: application/json.")
    param = _path(where)
    return ApiError(400, _sentence(param, kind, problem, context), param=param)


def _sentence(param: str, kind: str, problem: Any, context: Any) -> str:
    if kind == "refused":
        return f"{param} {context['said']}"
    if kind == "missing":
        return f"{param} is missing; give it."
    shown = _shown(problem.get("input"))
    if kind == "too_long":
        return f"{param} has {context['actual_length']} items; give at most {context['max_length']}."
    if kind == "too_short":
        return f"{param} is empty; give at least one."
    if form := _FORMS.get(param.split("[")[0]):  # pydantic speaks of one type alone
        return f"{param} is {shown}; give {form}."
    said = problem["msg"].removeprefix("Value error, ")
    return f"{param} is {shown}: {said[:1].lower()}{said[1:]}."


def _shown(value: Any) -> str:
    return shortened(json.dumps(value) if value is None or isinstance(value, bool) else _Repr().repr(value))


def _path(where: Sequence[Any]) -> str:
    """Such as messages[0].content. Parts in parentheses are the names of choices, not of settings."""
    path = ""
    for part in where:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part.startswith("("):
            path += f".{shortened(part)}"
    return path.lstrip(".").encode(errors="backslashreplace").decode()
