"""The collector: a small server over a class folder, with the wall's page at its root."""

from __future__ import annotations

import asyncio
import hmac
import sys
from collections.abc import Iterable
from typing import Annotated
from uuid import UUID

from fastapi import FastAPI, Header, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labcore.errors import LabError
from labcore.lab.wall.clients import Clients
from labcore.lab.wall.drawing import Drawing
from labcore.lab.wall.entry import Entry, first_fault
from labcore.lab.wall.folder import MOST_BYTES, Folder, NotYours, WallFull
from labcore.lab.wall.page import page_html, plotly_script, wall_data
from labcore.serving.hosts import HostCheck
from labcore.serving.server.connections import BoundedServer
from labcore.serving.server.limits import BodyLimit, Limits

_STATUS: dict[type[LabError], int] = {NotYours: 403, WallFull: 409}
LIMITS = Limits(max_body_bytes=MOST_BYTES)
RETRY_S = 2  # after too many changes
GRACE_S = 2  # after Ctrl-C, for requests that are being answered
_DEAD = "The collector cannot keep or read entries now; tell whoever runs it: its terminal says why."


class Refused(Exception):
    """A request that is answered with a status and one sentence."""

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers


class HangUp:
    """Ends the connection behind a refused body: what is still coming is not even read and thrown away."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 413:
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        await self._app(scope, receive, closing)


def create_app(
    folder: Folder,
    code: str = "",
    how: str = "",
    *,
    allowed_hosts: Iterable[str] = (),
    clients: Clients | None = None,
) -> FastAPI:
    """PUT and DELETE /entries/{id}, GET /entries and /wall.json, and the page at /.

    code: what learners must send to add or remove; without one everybody may who reaches the port. how: the
    line on the page that says how to share. allowed_hosts: names of this server beside those that only it can
    have. clients: the bounds on one address.
    """
    app = FastAPI(title="class wall", docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_middleware(BodyLimit, limits=LIMITS)
    app.add_middleware(HangUp)
    app.add_middleware(HostCheck, answer=_sentence, allowed=tuple(allowed_hosts))
    _answer_errors(app)
    _take_entries(app, folder, code, clients or Clients())
    _show_entries(app, folder, how)
    return app


def make_server(app: FastAPI) -> BoundedServer:
    """A server of the wall, with bounds on its connections."""
    # a header that anybody may send says nothing of where a change comes from
    settings = {"proxy_headers": False, "timeout_graceful_shutdown": GRACE_S}
    return BoundedServer(app, LIMITS, log_level="warning", **settings)


def _sentence(status: int, sentence: str) -> JSONResponse:
    return JSONResponse({"error": sentence}, status_code=status)


def _answer_errors(app: FastAPI) -> None:
    """Every error is {"error": one sentence}."""

    @app.exception_handler(Refused)
    async def refused(request: Request, why: Refused) -> JSONResponse:
        return JSONResponse({"error": why.sentence}, status_code=why.status, headers=why.headers)

    @app.exception_handler(LabError)
    async def failed(request: Request, why: LabError) -> JSONResponse:
        status = _STATUS.get(type(why), 503)
        if (
            status == 503
        ):  # its sentence names folders of this machine, which are none of a learner's business
            print(why, file=sys.stderr, flush=True)
        return _sentence(status, _DEAD if status == 503 else str(why))

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, why: HTTPException) -> JSONResponse:
        sentence = f"{why.detail}: the wall has no {request.method} of this address; its page is at /."
        return JSONResponse({"error": sentence}, status_code=why.status_code, headers=why.headers)


def _take_entries(app: FastAPI, folder: Folder, code: str, clients: Clients) -> None:
    """What changes the folder. On the event loop, one after another: so the bounds on entries hold."""

    @app.put("/entries/{id}", responses=_answers(400, 401, 403, 408, 409, 413, 422, 429, 503))
    async def put(
        id: str, request: Request, x_wall_secret: Annotated[str, Header()] = "",
        x_class_code: Annotated[str, Header()] = "",
    ) -> dict[str, str]:  # fmt: skip
        """Add or replace an entry."""
        _ensure_allowed(x_class_code, code, x_wall_secret)
        address = _ensure_calm(request, clients)
        place, entry = _uuid(id), _entry(await request.body())
        if entry.id != place:
            raise Refused(400, "The entry's id is not that of the address; share with `labcore wall share`.")
        if (new := not folder.holds(place)) and clients.is_full(address):
            raise Refused(
                429,
                f"{clients.most_each} entries came from your address, the most that one may add; ask who "
                "runs the wall to start it with a higher --most-each, if your class is larger.",
            )
        folder.put(entry, x_wall_secret)
        if new:
            clients.added(place, address)
        return {"kept": str(entry.id)}

    @app.delete("/entries/{id}", responses=_answers(400, 401, 403, 404, 429, 503))
    async def delete(
        id: str,
        request: Request,
        x_wall_secret: Annotated[str, Header()] = "",
        x_class_code: Annotated[str, Header()] = "",
    ) -> dict[str, str]:
        """Take an entry back."""
        _ensure_allowed(x_class_code, code, x_wall_secret)
        _ensure_calm(request, clients)
        if not folder.remove(_uuid(id), x_wall_secret):
            raise Refused(404, "There is no entry with this id; it may be taken back already.")
        clients.removed(_uuid(id))
        return {"removed": id}


def _show_entries(app: FastAPI, folder: Folder, how: str) -> None:
    """What anybody may read who reaches the port."""

    drawing = Drawing(
        lambda version: bytes(JSONResponse({"version": version, **wall_data(*folder.entries())}).body)
    )

    @app.get("/entries", responses=_answers(503))
    def entries() -> JSONResponse:
        """All entries, the earliest learner first, and files that are none."""
        found, faults = folder.entries()
        return JSONResponse({"entries": [one.model_dump(mode="json") for one in found], "faults": faults})

    @app.get("/wall.json", responses=_answers(503))
    async def wall(seen: str = "") -> Response:
        """What the page shows; 204 while there is nothing newer than the version `seen`."""
        version = await asyncio.to_thread(folder.version)
        if seen == version:
            return Response(status_code=204)
        drawn = await drawing.latest(version)
        if seen == drawn.version:
            return Response(status_code=204)
        return Response(drawn.body, media_type="application/json")

    @app.get("/", response_class=HTMLResponse)
    def page() -> str:
        return page_html(how)

    @app.get("/plotly.js", response_class=Response)
    def plotly() -> Response:
        return Response(
            plotly_script(), media_type="text/javascript", headers={"Cache-Control": "max-age=3600"}
        )


def _answers(*statuses: int) -> dict[int | str, dict[str, str]]:
    """For the API's own description."""
    return {status: {"description": "one sentence that says why"} for status in statuses}


def _ensure_allowed(given: str, wanted: str, secret: str) -> None:
    """Headers arrive as Latin-1 and are sent as UTF-8."""
    if wanted and not hmac.compare_digest(given.encode("latin-1"), wanted.encode()):
        raise Refused(401, "The class code is missing or wrong; it is on the board: --code CODE.")
    if not 20 <= len(secret) <= 200:
        raise Refused(400, "The secret has 20 to 200 characters; share with `labcore wall share`.")


def _ensure_calm(request: Request, clients: Clients) -> str:
    """The client's address. Raises Refused for one that changes too much at once."""
    address = request.client.host if request.client else ""
    if not clients.may_change(address):
        sentence = f"Too many changes come from your address; share again in {RETRY_S} s."
        raise Refused(429, sentence, {"Retry-After": str(RETRY_S)})
    return address


def _uuid(id: str) -> UUID:
    try:
        return UUID(id)
    except ValueError:
        raise Refused(400, "An entry's id is a UUID; share with `labcore wall share`.") from None


def _entry(body: bytes) -> Entry:
    try:
        return Entry.model_validate_json(body)
    except ValidationError as error:
        why = first_fault(error)
        raise Refused(
            422, f"This is no entry of the wall ({why}); share with `labcore wall share`."
        ) from None
