"""Requests made from the app's own schema, right ones and wrong ones: whatever is sent, nothing breaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.python import asgi

import labcore
from labcore.serving import LLMEngine
from labcore.serving.server import Limits, create_app

pytestmark = pytest.mark.timeout(60)

ENGINE = LLMEngine(labcore.load("story", device="cpu", dtype="float32"), num_blocks=64, max_num_seqs=16)
LIMITS = Limits(max_tokens=4, max_concurrency=16, max_body_bytes=100_000)
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", create_app(ENGINE, limits=LIMITS))
ANSWERS: Counter[tuple[str, int]] = Counter()


@pytest.fixture(scope="module", autouse=True)
def _stopped_at_the_end() -> Iterator[None]:
    yield
    asgi.shutdown_lifespans()
    for path in ("/v1/completions", "/v1/chat/completions"):
        asked = sum(count for (found, _), count in ANSWERS.items() if found == path)
        assert not asked or ANSWERS[(path, 200)] > 0  # a schema that lets nothing through tests nothing


@SCHEMA.parametrize()
@settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)  # fmt: skip
def test_nothing_that_is_sent_breaks_the_server(case: schemathesis.Case) -> None:
    _send(case)
    if isinstance(case.body, dict) and "model" in case.body:
        case.body = _mended(case.body)
        _send(case)


def _send(case: schemathesis.Case) -> None:
    answer = case.call()
    ANSWERS[(case.path, answer.status_code)] += 1
    case.validate_response(answer, checks=[not_a_server_error])
    assert not ENGINE.has_work


def _mended(body: dict[str, Any]) -> dict[str, Any]:
    """What a schema cannot say: the model's name, this server's limits, what goes with what."""
    kept = {name: value for name, value in body.items() if name not in ("best_of", "top_logprobs")}
    kept |= {name: 3 for name in ("max_tokens", "max_completion_tokens", "n") if kept.get(name)}
    asked = "prompt" if "prompt" in body else "messages"
    return kept | {"model": "story", "stream": True, asked: _asked(body)}


def _asked(body: dict[str, Any]) -> Any:
    """Its prompt, with tokens that exist, and not empty."""
    prompt = body.get("prompt", body.get("messages")) or "Once"
    if isinstance(prompt, list) and all(type(token) is int for token in prompt):
        return [token % ENGINE.model.config.vocab_size for token in prompt][:50]
    return prompt


def test_the_schema_tells_of_errors_and_streams() -> None:
    told = SCHEMA.raw_schema["paths"]["/v1/completions"]["post"]["responses"]
    assert set(told) == {"200", "4XX", "5XX"}
    assert set(told["200"]["content"]) == {"application/json", "text/event-stream"}
    assert told["4XX"]["content"]["application/json"]["schema"]["$ref"].endswith("ErrorAnswer")
