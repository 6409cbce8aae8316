"""An API key, where the server was given one: without it nothing under /v1 is answered."""

from __future__ import annotations

import hmac

from starlette.types import ASGIApp, Receive, Scope, Send

from labcore.errors import ConfigError
from labcore.serving.server.errors import ApiError, error_response

GUARDED = "/v1"


def ensure_key(key: str) -> None:
    """Raises ConfigError for a key that no header can carry."""
    if not key.isascii() or not key.isprintable() or not key.strip():
        raise ConfigError(f"The API key has {len(key)} characters; give one or more, all printable ASCII.")


class ApiKey:
    """Looks at `Authorization: Bearer KEY` before the body is read."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._key = key.strip().encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(GUARDED):
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, key = given.partition(b" ")
        if scheme.lower() == b"bearer" and hmac.compare_digest(key.strip(), self._key):
            await self._app(scope, receive, send)
            return
        what = "The API key is not the one of this server" if given else "There is no API key"
        error = ApiError(
            401,
            f"{what}; send the header 'Authorization: Bearer KEY'.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await error_response(error)(scope, receive, send)
