"""What the endpoints share: the engine, the model's name and tokenizer, the limits, the metrics."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from labcore.serving.async_engine import AsyncLLMEngine
from labcore.serving.engine import LLMEngine
from labcore.serving.requests import Request
from labcore.serving.server.answering import Answering
from labcore.serving.server.api_types import GenerationBody
from labcore.serving.server.errors import ApiError
from labcore.serving.server.forms import Form
from labcore.serving.server.limits import Gate, Limits
from labcore.serving.server.metrics import Metrics
from labcore.serving.server.prompts import ChatTemplate, Lengths, encode_all

STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer, or with stream: true its chunks as server-sent events.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


class Service:
    """One engine behind one server."""

    def __init__(self, engine: LLMEngine, name: str, limits: Limits, chat_template: ChatTemplate) -> None:
        self.name, self.limits, self.chat_template = name, limits, chat_template
        self.tokenizer = engine.model.tokenizer
        self.max_model_len = engine.max_model_len
        self.created = int(time.time())
        self.gate = Gate(limits)
        self.metrics = Metrics(name, lambda: self.engine.stats)
        self.engine = AsyncLLMEngine(engine, [self.metrics])

    def ensure_model(self, name: str) -> None:
        """Raises ApiError for a model that is not here."""
        if name != self.name:
            message = f"There is no model {name!r} here; ask for {self.name!r}."
            raise ApiError(404, message, param="model", code="model_not_found")

    async def requests(
        self,
        id: str,
        body: GenerationBody,
        prompts: Sequence[str | Sequence[int]],
        param: str,
        lengths: Lengths,
        logprobs: int | None,
    ) -> list[Request]:
        """The engine's requests: for each prompt, one for each choice. Raises ApiError and SamplingError."""
        self.gate.ensure_possible(len(prompts) * body.choices)
        made: list[Request] = []
        for tokens in await encode_all(prompts, self.tokenizer, param):
            stopping = body.stopping(lengths.room(len(tokens), self.max_model_len, self.limits, param))
            for sampling in body.samplings():
                one = f"{id}-{len(made)}"
                made.append(Request(one, tokens, sampling, stopping, body.priority or 0, logprobs))
        return made

    def about(self, id: str, body: GenerationBody) -> dict[str, Any]:
        """What every form says."""
        return {
            "id": id, "created": int(time.time()), "model": self.name,
            "token_ids": bool(body.return_token_ids), "usage": body.wants_usage,
        }  # fmt: skip

    def answering(self, requests: Sequence[Request], form: Form, body: GenerationBody) -> Answering:
        """The answer to them."""
        return Answering(
            self.engine,
            self.gate,
            self.limits.request_timeout_s,
            requests,
            form,
            stream=bool(body.stream),
            per_prompt=body.choices,
            tokenizer=self.tokenizer,
        )


def new_id(kind: str) -> str:
    """Of one answer."""
    return f"{kind}-{secrets.token_hex(12)}"
