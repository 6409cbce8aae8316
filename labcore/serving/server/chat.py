"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from labcore.serving.requests import RequestOutput
from labcore.serving.server.answer_types import ChatAnswer, ChatChoice, ChatMessage, Usage
from labcore.serving.server.api_types import ChatBody
from labcore.serving.server.forms import Choice, Form, reason_of
from labcore.serving.server.prompts import Lengths
from labcore.serving.server.service import STREAMED, Asked, Service, new_id


class ChatForm(Form):
    """What the assistant says."""

    kind = "chat.completion.chunk"

    def whole(self, choices: Sequence[Choice], usage: Usage) -> ChatAnswer:
        """The answer in one piece."""
        told = [
            ChatChoice(
                index=choice.index,
                message=ChatMessage(content=choice.text),
                logprobs=choice.speller.chat(choice.logprobs) if self.logprobs else None,
                finish_reason=choice.reason or "stop",
                token_ids=self.ids_of(choice.tokens),
            )
            for choice in choices
        ]
        return ChatAnswer(id=self.id, created=self.created, model=self.model, choices=told, usage=usage)

    def parts(self, choice: Choice, output: RequestOutput) -> Iterator[dict[str, Any]]:
        """The role, then one chunk for each output, then why it ended."""
        if not choice.begun:
            choice.begun = True
            yield _part({"role": "assistant", "content": ""})
        logprobs = choice.speller.chat(output.logprobs).model_dump() if self.logprobs else None
        part = _part({"content": output.text}) | {"logprobs": logprobs}
        if self.token_ids:
            part["token_ids"] = list(output.tokens)
        yield part
        if (reason := reason_of(output)) is not None:
            yield _part({}) | {"finish_reason": reason}


def _part(delta: dict[str, str]) -> dict[str, Any]:
    return {"delta": delta, "logprobs": None, "finish_reason": None}


def router(service: Service) -> APIRouter:
    """The endpoint of one service."""
    routes = APIRouter(route_class=service.turns.route_class())

    @routes.post("/v1/chat/completions", response_model=ChatAnswer, responses=STREAMED)
    async def create_chat_completion(body: ChatBody) -> Response:
        """Answer a conversation."""
        service.ensure_model(body.model)
        id = new_id("chatcmpl")
        prompt = service.chat_template(body.messages)
        lengths = Lengths(body.limit, param=body.limit_param)
        asked = Asked(body, [prompt], "messages", lengths, body.wanted_logprobs)
        form = ChatForm(**service.about(id, body), logprobs=bool(body.logprobs))
        return service.answering(asked, form)

    return routes
