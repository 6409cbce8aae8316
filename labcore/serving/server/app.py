"""The HTTP app: an engine behind OpenAI's API."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Security
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from labcore import __version__
from labcore.serving.engine import LLMEngine
from labcore.serving.hosts import HostCheck, ensure_names
from labcore.serving.server import chat, completions, errors, invalid
from labcore.serving.server.answer_types import Health, ModelCard, ModelList
from labcore.serving.server.browsers import JsonOnly, refusal
from labcore.serving.server.keys import ApiKey, ensure_key
from labcore.serving.server.limits import BodyLimit, Limits
from labcore.serving.server.prompts import ChatTemplate, plain_template
from labcore.serving.server.service import Service

FAILURES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": errors.ErrorAnswer, "description": "What the client can mend."},
    "5XX": {"model": errors.ErrorAnswer, "description": "The server is stopping, late or broken."},
}


def create_app(
    engine: LLMEngine,
    *,
    name: str | None = None,
    limits: Limits | None = None,
    api_key: str | None = None,
    allowed_hosts: Sequence[str] = (),
    chat_template: ChatTemplate = plain_template,
) -> FastAPI:
    """The app of one engine, which nobody else may use while the app runs.

    name: of the model, as clients ask for it (default: the model's own). api_key: what clients must send
    under /v1. allowed_hosts: names that clients may ask for besides the server's own (`hosts`).
    chat_template: from messages to the text of a prompt. `app.state.service` holds the parts. Raises
    ConfigError for a key that no header can carry, or a host that is none.
    """
    limits = limits or Limits()
    service = Service(engine, name or engine.model.name, limits, chat_template)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            service.close()

    # no pages of documentation: theirs come from other hosts; a redirect would repeat the request's host
    app = FastAPI(
        title="labcore", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        redirect_slashes=False, responses=FAILURES,
    )  # fmt: skip
    app.state.service = service
    errors.install(app)
    invalid.install(app)
    _guard(app, limits, api_key, allowed_hosts)
    guard = [] if api_key is None else [Security(HTTPBearer(auto_error=False))]  # for the schema alone
    for routes in (_models(service), completions.router(service), chat.router(service)):
        app.include_router(routes, dependencies=guard)
    app.include_router(_standing(service))
    return app


def _guard(app: FastAPI, limits: Limits, api_key: str | None, allowed_hosts: Sequence[str]) -> None:
    """What is looked at before a request is read; what is added last comes first."""
    ensure_names(allowed_hosts)  # the app makes its middleware only when it starts
    app.add_middleware(JsonOnly)
    app.add_middleware(BodyLimit, limits=limits)
    if api_key is not None:
        ensure_key(api_key)
        app.add_middleware(ApiKey, key=api_key)
    app.add_middleware(HostCheck, answer=refusal, allowed=allowed_hosts, keyed=api_key is not None)


def _models(service: Service) -> APIRouter:
    """What there is to ask."""
    routes = APIRouter()
    card = ModelCard(id=service.name, created=service.created, max_model_len=service.max_model_len)

    @routes.head("/v1/models", include_in_schema=False)
    @routes.get("/v1/models")
    async def list_models() -> ModelList:
        """The one model."""
        return ModelList(data=[card])

    @routes.head("/v1/models/{name:path}", include_in_schema=False)
    @routes.get("/v1/models/{name:path}")
    async def get_model(name: str) -> ModelCard:
        """The model, if it has this name."""
        service.ensure_model(name)
        return card

    return routes


def _standing(service: Service) -> APIRouter:
    """How it stands."""
    routes = APIRouter()

    @routes.head("/health", include_in_schema=False)
    @routes.get("/health")
    async def health() -> Health:
        """Whether requests are taken."""
        service.engine.ensure_accepting()
        return Health()

    @routes.head("/metrics", include_in_schema=False)
    @routes.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return routes
