"""Serving: many requests on one model. Requests, a scheduler, policies, an engine; over them a server.

    engine = LLMEngine(model, policy="continuous")
    engine.add(Request("a", prompt=tokens))
    while engine.has_work:
        for output in engine.step(): ...

`answer` and `replay` do that loop for a list of prompts and for a trace of arrivals. The HTTP server and its
load generator stand in modules of their own, which need the packages of the extra `serve`.
"""

from __future__ import annotations

from labcore.generation.speculation import DraftModel, PromptLookup
from labcore.serving.engine import LLMEngine
from labcore.serving.events import EngineStats, RowEvent, StepEvent
from labcore.serving.offline import Answered, answer, replay
from labcore.serving.policies import Continuous, Dynamic, OneByOne, Static
from labcore.serving.requests import Request, RequestOutput, TokenLogprob

__all__ = [
    "Answered",
    "Continuous",
    "DraftModel",
    "Dynamic",
    "EngineStats",
    "LLMEngine",
    "OneByOne",
    "PromptLookup",
    "Request",
    "RequestOutput",
    "RowEvent",
    "Static",
    "StepEvent",
    "TokenLogprob",
    "answer",
    "replay",
]
