"""What the endpoints share: the engine, the model's name and tokenizer, the limits, the metrics."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from labcore.generation.prompts import window_note
from labcore.serving.async_engine import AsyncLLMEngine
from labcore.serving.engine import LLMEngine
from labcore.serving.requests import Request
from labcore.serving.server.answering import Answering
from labcore.serving.server.api_types import GenerationBody
from labcore.serving.server.encoding import Encoder, OnePrompt
from labcore.serving.server.errors import ApiError, shortened
from labcore.serving.server.forms import Form
from labcore.serving.server.limits import Gate, Limits
from labcore.serving.server.metrics import Metrics
from labcore.serving.server.prompts import ChatTemplate, Lengths, Room
from labcore.serving.server.turns import Turns

STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer, or with stream: true its chunks as server-sent events.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


@dataclass(frozen=True)
class Asked:
    """What both endpoints make of a body. param: the client's name for the prompts."""

    body: GenerationBody
    prompts: Sequence[OnePrompt]
    param: str
    lengths: Lengths
    logprobs: int | None


class Service:
    """One engine behind one server."""

    def __init__(self, engine: LLMEngine, name: str, limits: Limits, chat_template: ChatTemplate) -> None:
        self.name, self.limits, self.chat_template = name, limits, chat_template
        self.tokenizer = engine.model.tokenizer
        self.max_model_len = engine.max_model_len
        self.room = Room(engine.max_model_len, limits, window_note(engine.model.config, engine.max_model_len))
        self.encoder = Encoder(self.tokenizer, self.room)
        self.turns = Turns()
        self.created = int(time.time())
        self.gate = Gate(limits)
        self.metrics = Metrics(name, lambda: self.engine.stats)
        self.engine = AsyncLLMEngine(engine, [self.metrics])

    def start(self) -> None:
        """Begin to work; from the event loop that will ask."""
        self.turns.start()
        self.encoder.start()
        self.engine.start()

    def close(self) -> None:
        """End the threads."""
        self.engine.close()
        self.encoder.close()

    def ensure_model(self, name: str) -> None:
        """Raises ApiError for a model that is not here."""
        if name != self.name:
            message = f"There is no model {shortened(name)!r} here; ask for {self.name!r}."
            raise ApiError(404, message, param="model", code="model_not_found")

    async def _requests(self, asked: Asked, id: str) -> list[Request]:
        """The engine's requests: for each prompt, one for each choice. Raises ApiError and SamplingError."""
        body = asked.body
        if body.stop and self.tokenizer is None:
            raise ApiError(400, "stop needs a tokenizer and this model has none; leave it out.", param="stop")
        made: list[Request] = []
        for tokens in await self.encoder.encode_all(asked.prompts, asked.param):
            stopping = body.stopping(asked.lengths.of(len(tokens), self.room, asked.param))
            for sampling in body.samplings():
                one = f"{id}-{len(made)}"
                made.append(Request(one, tokens, sampling, stopping, body.priority or 0, asked.logprobs))
        return made

    def about(self, id: str, body: GenerationBody) -> dict[str, Any]:
        """What every form says."""
        return {
            "id": id, "created": int(time.time()), "model": self.name,
            "token_ids": bool(body.return_token_ids), "usage": body.wants_usage,
        }  # fmt: skip

    def answering(self, asked: Asked, form: Form) -> Answering:
        """The answer, which takes its places, is encoded and computed while it is sent."""
        return Answering(
            self.engine,
            self.gate,
            self.limits.request_timeout_s,
            partial(self._requests, asked, form.id),
            form,
            places=len(asked.prompts) * asked.body.choices,
            param=asked.param,
            stream=bool(asked.body.stream),
            per_prompt=asked.body.choices,
            tokenizer=self.tokenizer,
        )


def new_id(kind: str) -> str:
    """Of one answer."""
    return f"{kind}-{secrets.token_hex(12)}"
