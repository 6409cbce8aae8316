"""What keeps websites from driving the server through a visitor's browser."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from labcore.serving.server.errors import ApiError, error_response
from labcore.serving.server.keys import GUARDED


def refusal(status: int, sentence: str) -> ASGIApp:
    """An app that gives this answer."""
    return error_response(ApiError(status, sentence))


class JsonOnly:
    """Refuses what a page may send to any server without asking it first: a form, or a text (415)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        asks = scope["type"] == "http" and scope["method"] == "POST" and scope["path"].startswith(GUARDED)
        if asks and not _is_json(scope):
            app = refusal(415, "A body must be JSON, sent with Content-Type: application/json; send it so.")
        await app(scope, receive, send)


def _is_json(scope: Scope) -> bool:
    kind = dict(scope["headers"]).get(b"content-type", b"").split(b";")[0].strip().lower()
    return kind == b"application/json" or (kind.startswith(b"application/") and kind.endswith(b"+json"))
