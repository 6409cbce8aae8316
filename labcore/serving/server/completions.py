"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from labcore.serving.requests import RequestOutput
from labcore.serving.server.answer_types import CompletionAnswer, CompletionChoice, Usage
from labcore.serving.server.api_types import CompletionBody
from labcore.serving.server.forms import Choice, Form, reason_of
from labcore.serving.server.prompts import USUAL_TOKENS, Lengths
from labcore.serving.server.service import STREAMED, Asked, Service, new_id


class CompletionForm(Form):
    """Text that goes on."""

    kind = "text_completion"

    def whole(self, choices: Sequence[Choice], usage: Usage) -> CompletionAnswer:
        """The answer in one piece."""
        told = [
            CompletionChoice(
                index=choice.index,
                text=choice.text,
                logprobs=choice.speller.completion(choice.logprobs) if self.logprobs else None,
                finish_reason=choice.reason or "stop",
                token_ids=self.ids_of(choice.tokens),
            )
            for choice in choices
        ]
        return CompletionAnswer(id=self.id, created=self.created, model=self.model, choices=told, usage=usage)

    def parts(self, choice: Choice, output: RequestOutput) -> Iterator[dict[str, Any]]:
        """One chunk for each output, though its text may be empty: somebody may time them."""
        logprobs = choice.speller.completion(output.logprobs).model_dump() if self.logprobs else None
        part: dict[str, Any] = {"text": output.text, "logprobs": logprobs, "finish_reason": reason_of(output)}
        if self.token_ids:
            part["token_ids"] = list(output.tokens)
        yield part


def router(service: Service) -> APIRouter:
    """The endpoint of one service."""
    routes = APIRouter(route_class=service.turns.route_class())

    @routes.post("/v1/completions", response_model=CompletionAnswer, responses=STREAMED)
    async def create_completion(body: CompletionBody) -> Response:
        """Continue one prompt or several."""
        service.ensure_model(body.model)
        id = new_id("cmpl")
        lengths = Lengths(body.max_tokens, USUAL_TOKENS)
        asked = Asked(body, body.prompts(), "prompt", lengths, body.logprobs)
        form = CompletionForm(**service.about(id, body), logprobs=body.logprobs is not None)
        return service.answering(asked, form)

    return routes
