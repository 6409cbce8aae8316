"""The collector: a small server over a class folder, with the wall's page at its root."""

from __future__ import annotations

import hmac
from typing import Annotated
from uuid import UUID

from fastapi import FastAPI, Header, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import ValidationError

from labcore.errors import LabError, LessonError
from labcore.lab.wall.entry import Entry, first_fault
from labcore.lab.wall.folder import Folder, NotYours, WallFull
from labcore.lab.wall.page import page_html, plotly_script, wall_data
from labcore.serving.server.limits import BodyLimit, Limits

MOST_BYTES = 2**20
_STATUS: dict[type[LabError], int] = {NotYours: 403, WallFull: 409}


class Refused(Exception):
    """A request that is answered with a status and one sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


def create_app(folder: Folder, code: str = "", how: str = "") -> FastAPI:
    """PUT and DELETE /entries/{id}, GET /wall.json, and the page at /.

    code: what learners must send to add or remove; without one everybody may who reaches the port. how: the
    line on the page that says how to share.
    """
    app = FastAPI(title="class wall", docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, limits=Limits(max_body_bytes=MOST_BYTES))

    @app.exception_handler(Refused)
    async def refused(request: Request, why: Refused) -> JSONResponse:
        return JSONResponse({"error": why.sentence}, status_code=why.status)

    @app.exception_handler(LabError)
    async def failed(request: Request, why: LabError) -> JSONResponse:
        return JSONResponse({"error": str(why)}, status_code=_STATUS.get(type(why), 503))

    @app.put("/entries/{id}", responses=_answers(400, 401, 403, 409, 413, 422, 503))
    async def put(
        id: str, request: Request, x_wall_secret: Annotated[str, Header()] = "",
        x_class_code: Annotated[str, Header()] = "",
    ) -> dict[str, str]:  # fmt: skip
        """Add or replace an entry."""
        _ensure_code(x_class_code, code)
        entry = _entry(await request.body())
        if str(entry.id) != str(_uuid(id)):
            raise Refused(400, "The entry's id is not that of the address; share with `labcore wall share`.")
        _ensure_secret(x_wall_secret)
        folder.put(entry, x_wall_secret)
        return {"kept": str(entry.id)}

    @app.delete("/entries/{id}", responses=_answers(400, 401, 403, 404, 503))
    async def delete(
        id: str, x_wall_secret: Annotated[str, Header()] = "", x_class_code: Annotated[str, Header()] = ""
    ) -> dict[str, str]:
        """Take an entry back."""
        _ensure_code(x_class_code, code)
        _ensure_secret(x_wall_secret)
        if not folder.remove(_uuid(id), x_wall_secret):
            raise Refused(404, "There is no entry with this id.")
        return {"removed": id}

    @app.get("/wall.json", responses=_answers(503))
    def wall(seen: str = "") -> Response:
        """What the page shows; 204 while nothing has changed since the version `seen`."""
        version = folder.version()
        if seen == version:
            return Response(status_code=204)
        return JSONResponse({"version": version, **wall_data(*folder.entries())})

    @app.get("/", response_class=HTMLResponse)
    def page() -> str:
        return page_html(how)

    @app.get("/plotly.js", response_class=Response)
    def plotly() -> Response:
        return Response(plotly_script(), media_type="text/javascript")

    return app


def _answers(*statuses: int) -> dict[int | str, dict[str, str]]:
    """For the API's own description."""
    return {status: {"description": "one sentence that says why"} for status in statuses}


def _ensure_code(given: str, wanted: str) -> None:
    if wanted and not hmac.compare_digest(given.encode(), wanted.encode()):
        raise Refused(401, "The class code is missing or wrong; it is on the board: --code CODE.")


def _ensure_secret(secret: str) -> None:
    if not 20 <= len(secret) <= 200:
        raise Refused(400, "The secret has 20 to 200 characters; share with `labcore wall share`.")


def _uuid(id: str) -> UUID:
    try:
        return UUID(id)
    except ValueError:
        raise Refused(400, "An entry's id is a UUID; share with `labcore wall share`.") from None


def _entry(body: bytes) -> Entry:
    try:
        return Entry.model_validate_json(body)
    except ValidationError as error:
        raise Refused(422, f"This is no entry of the wall ({first_fault(error)}).") from None
    except LessonError as error:
        raise Refused(422, str(error)) from None
