"""An engine that computes nothing: it counts, and keeps time and failures in the test's hand."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from labcore.errors import CacheFull, PromptError
from labcore.serving.events import EngineStats, RowEvent, StepEvent
from labcore.serving.requests import FinishReason, Request, RequestOutput

BLOCKS = 32


@dataclass
class _Running:
    request: Request
    given: int = 0


@dataclass
class CountingEngine:
    """Answers 1, 2, 3, … to everybody, one token a step; each request holds one block.

    step_s: how long a step takes. fails_at: the step that raises. polls: how often `step` was called.
    """

    step_s: float = 0.0
    fails_at: int | None = None
    holds_back: bool = False  # has work, yet does nothing: a batch that waits to be filled
    steps: int = 0
    polls: int = 0
    last_event: StepEvent | None = None
    aborted: list[str] = field(default_factory=list)
    requests: dict[str, _Running] = field(default_factory=dict)
    max_model_len: int = 20_000
    model: Any = field(
        default_factory=lambda: SimpleNamespace(
            name="counting", tokenizer=None, config=SimpleNamespace(sliding_window=None)
        )
    )

    def clock(self) -> float:
        return time.perf_counter()

    def add(self, request: Request) -> None:
        if not request.prompt:
            raise PromptError("The prompt is empty; give at least one token.")
        if len(self.requests) == BLOCKS:
            raise CacheFull(f"All {BLOCKS} blocks are held; ask for fewer.")
        self.requests[request.id] = _Running(request)

    def abort(self, id: str) -> RequestOutput | None:
        if (running := self.requests.pop(id, None)) is None:
            return None
        self.aborted.append(id)
        return self._output(running, (), "abort")

    def step(self) -> list[RequestOutput]:
        self.polls += 1
        if self.holds_back:
            return []
        if self.steps == self.fails_at:
            raise RuntimeError("a cable came off")
        start = self.clock()
        time.sleep(self.step_s)
        outputs = [self._advance(running) for running in list(self.requests.values())]
        rows = tuple(RowEvent(one.id, "decode", 1, 1, 1, (0,)) for one in outputs)
        self.last_event = StepEvent(
            index=self.steps, start_s=start, seconds=self.clock() - start, schedule_s=0.0, rows=rows,
            waiting=0, running=len(self.requests), blocks_used=len(self.requests), blocks_total=BLOCKS,
        )  # fmt: skip
        self.steps += 1
        return outputs

    def _advance(self, running: _Running) -> RequestOutput:
        running.given += 1
        over = running.given == running.request.stopping.max_new_tokens
        if over:
            del self.requests[running.request.id]
        return self._output(running, (running.given,), "length" if over else None)

    def _output(
        self, running: _Running, tokens: tuple[int, ...], reason: FinishReason | None
    ) -> RequestOutput:
        return RequestOutput(
            running.request.id, tokens, "", (), reason, len(running.request.prompt), running.given
        )

    @property
    def has_work(self) -> bool:
        return bool(self.requests)

    @property
    def stats(self) -> EngineStats:
        return EngineStats(
            waiting=0, running=len(self.requests), blocks_used=len(self.requests), blocks_total=BLOCKS,
            steps=self.steps, prompt_tokens=0, output_tokens=0, preemptions=0,
            prefix_queries=0, prefix_hits=0,
        )  # fmt: skip
