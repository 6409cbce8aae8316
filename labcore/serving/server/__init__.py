"""An engine behind OpenAI's HTTP API. Needs the extra `serve`."""

from __future__ import annotations

from labcore.serving.server.app import create_app
from labcore.serving.server.background import Server, ServerError, bind, serving, url_of
from labcore.serving.server.connections import BoundedServer
from labcore.serving.server.limits import Limits
from labcore.serving.server.prompts import ChatTemplate, plain_template

__all__ = [
    "BoundedServer",
    "ChatTemplate",
    "Limits",
    "Server",
    "ServerError",
    "bind",
    "create_app",
    "plain_template",
    "serving",
    "url_of",
]
