"""What every engine does with requests, whatever computes: schedule, run, hand out."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from labcore.errors import LabError
from labcore.generation.answer import Answer
from labcore.generation.speculation import Drafter
from labcore.model import Model
from labcore.serving.admission import ensure_possible
from labcore.serving.blocks import BlockManager
from labcore.serving.drawing import Drawn
from labcore.serving.events import EngineStats, StepEvent
from labcore.serving.flight import Flight, expect, row_event
from labcore.serving.policies import Policy, policy_of
from labcore.serving.requests import FinishReason, Request, RequestOutput
from labcore.serving.runner import Runner
from labcore.serving.scheduler import Limits, Scheduler
from labcore.serving.sequence import Plan, Row, Sequence
from labcore.serving.swapping import SwapChoice


class EngineCore:
    """Requests in, steps, outputs and events out. `LLMEngine` runs a model in it, a simulation its costs.

    model: what says which requests are possible and what ends an answer. runner: takes the steps.
    overlap: launch a step before what the one before drew is known. most_events: that are kept, the newest;
    None: all.
    """

    def __init__(
        self,
        model: Model,
        blocks: BlockManager,
        runner: Runner,
        policy: str | Policy,
        limits: Limits,
        *,
        max_model_len: int,
        swap_choice: SwapChoice,
        clock: Callable[[], float],
        speculation: Drafter | None = None,
        overlap: bool = False,
        most_events: int | None = None,
    ) -> None:
        self.model, self.clock, self.speculation = model, clock, speculation
        self.max_model_len, self.blocks, self.runner = max_model_len, blocks, runner
        self.scheduler = Scheduler(blocks, policy_of(policy), limits)
        self.scheduler.swaps = self.swap_choice = swap_choice
        self.events: deque[StepEvent] = deque(maxlen=most_events)
        self._sequences: dict[str, Sequence] = {}
        self._counts = {"prompt": 0, "output": 0, "preemptions": 0, "drafted": 0, "accepted": 0}
        self._steps, self.idle_step = 0, False
        self.overlap = overlap
        self._flying: Flight | None = None
        self._landed_s = -math.inf
        self._ended: list[tuple[str, FinishReason]] = []

    # Requests

    def add(self, request: Request) -> None:
        """Put a request into the queue.

        Raises PromptError for an empty or overlong prompt or an unknown token, CacheFull for one that the
        whole pool could not hold, SamplingError for stop strings without a tokenizer, ValueError for an id in
        use.
        """
        if request.id in self._sequences:
            raise ValueError(f"Request {request.id!r} is here already; ids are unique.")
        ensure_possible(request, self.model, self.max_model_len, self.blocks.pool)
        length = len(request.prompt)
        limit = min(length + request.stopping.max_new_tokens, self.max_model_len)
        arrival = self.clock() if request.arrival_s is None else request.arrival_s
        answer = Answer(self.model, list(request.prompt), request.stopping)
        self._sequences[request.id] = sequence = Sequence(request, arrival, limit, answer)
        self.scheduler.add(sequence)

    def abort(self, id: str) -> RequestOutput | None:
        """End a request now and free its blocks; None where there is no such request."""
        if (sequence := self._sequences.get(id)) is None:
            return None
        sequence.ended = "abort"
        self._ended.append((id, "abort"))  # the next step's event tells it
        self._forget(sequence)
        return _output(sequence, Drawn(), "", len(sequence.answer.output.tokens), "abort")

    @property
    def has_work(self) -> bool:
        """Whether anyone waits or runs, or a step is under way."""
        return bool(self._sequences) or self._flying is not None

    @property
    def stats(self) -> EngineStats:
        """Where it stands."""
        tree = self.blocks.tree
        return EngineStats(
            waiting=len(self.scheduler.waiting),
            running=len(self.scheduler.running),
            blocks_used=self.blocks.in_use,
            blocks_total=self.blocks.pool.num_blocks,
            steps=self._steps,
            prompt_tokens=self._counts["prompt"],
            output_tokens=self._counts["output"],
            preemptions=self._counts["preemptions"],
            prefix_queries=tree.stats.tokens_asked if tree else 0,
            prefix_hits=tree.stats.tokens_hit if tree else 0,
            drafted=self._counts["drafted"],
            accepted=self._counts["accepted"],
        )

    @property
    def last_event(self) -> StepEvent | None:
        """The newest step."""
        return self.events[-1] if self.events else None

    # A step

    def step(self) -> list[RequestOutput]:
        """Decide, launch, hand out: what this step drew or, where steps overlap, what the one before did.

        Nothing to do: an empty list at once.
        """
        start = self.clock()
        outputs = self._land() if self._flying and self._must_know() else []
        plan = self.scheduler.schedule(start)
        self._counts["preemptions"] += len(plan.preempted)  # they happened, whatever becomes of the step
        self.idle_step = not plan.rows and self._flying is None
        launched = self._launch(plan, start) if plan.rows else None
        outputs += self._land()
        self._flying = launched
        return outputs if self.overlap else outputs + self._land()

    def _must_know(self) -> bool:
        """Whether deciding or drawing needs the tokens themselves, and not only how many there are."""
        return any(one.request.sampling.repetition_penalty != 1.0 for one in self.scheduler.running)

    def _launch(self, plan: Plan, start: float) -> Flight:
        decided = self.clock()
        result = self.runner.launch(plan)
        held = [row_event(row) for row in plan.rows]  # while a GPU computes
        if self.overlap:
            expect(plan.rows)
        return Flight(plan, held, result, start, decided)

    def _land(self) -> list[RequestOutput]:
        """Wait for the step that is under way, and count, end and tell what came of it."""
        flight, self._flying = self._flying, None
        if flight is None:
            return []
        drawn = flight.result()
        seconds = self.clock() - max(flight.decided_s, self._landed_s)
        pairs = zip(flight.plan.rows, drawn, strict=True)
        outputs = [self._advance(row, one, seconds) for row, one in pairs]
        self._guess()
        self.swap_choice.saw(flight.plan, seconds)
        self._record(flight, outputs)
        return [output for output in outputs if output is not None]

    def _advance(self, row: Row, drawn: Drawn, seconds: float) -> RequestOutput | None:
        """Count what was computed, take what was drawn, and end what is over."""
        sequence = row.sequence
        if sequence.lingers or sequence.ended:
            return None
        guesses, sequence.drafted = len(sequence.drafted), []
        first = end = row.start + row.new - guesses
        shown = ""
        for token in drawn.tokens:
            sequence.tokens[end : end + 1] = [token]  # in the place that was kept for it, or behind the known
            end += 1
            try:
                shown += sequence.answer.push(token, seconds, last=end >= sequence.limit)
            except LabError as error:  # this request's alone: the others go on
                return self._fail(sequence, error)
            if sequence.answer.ended:
                del sequence.tokens[end:]
                break
        taken = end - first
        if not self.overlap:
            # What was drawn last is known and not computed; what was computed for guesses behind it is void.
            sequence.computed = end - 1 if taken else row.start + row.new
        # All but the last were guesses; an end among them leaves the last out.
        self._count(taken, guesses, min(taken, len(drawn.tokens) - 1) if guesses else 0)
        if guesses:
            self.blocks.trim(sequence)
        if row.start < sequence.prompt_length <= first and sequence.blocks:
            self.blocks.remember(sequence)
        if not drawn.tokens:
            return None
        if first == sequence.prompt_length:
            self._counts["prompt"] += first
        kept = Drawn(drawn.tokens[:taken], drawn.logprobs[:taken])
        return _output(sequence, kept, shown, end - sequence.prompt_length, self._end(sequence))

    def _fail(self, sequence: Sequence, error: LabError) -> RequestOutput:
        """End a request that cannot go on, with the reason."""
        output = self.abort(sequence.id)
        assert output is not None
        return replace(output, error=error)

    def _end(self, sequence: Sequence) -> FinishReason | None:
        """Why it is over, with its place given up (or kept, in a fixed batch); None: it is not."""
        if not sequence.answer.ended:
            return None
        sequence.ended = sequence.answer.output.finish_reason
        self._ended.append((sequence.id, sequence.ended))
        if self.scheduler.policy.fixed_batch:
            self.blocks.remember(sequence)
            sequence.lingers = True
            del self._sequences[sequence.id]
            self.scheduler.sweep()
        else:
            self._forget(sequence)
        return sequence.ended

    def _forget(self, sequence: Sequence) -> None:
        self.scheduler.remove(sequence)
        self.swap_choice.aside.pop(sequence.id, None)
        self._sequences.pop(sequence.id, None)
        self.scheduler.sweep()

    def _guess(self) -> None:
        """Let the drafter guess what comes next, for those who decode."""
        if self.speculation is None:
            return
        for sequence in self.scheduler.running:
            room = sequence.limit - len(sequence.tokens) - 1
            if sequence.decoding and not sequence.lingers and room > 0:
                sequence.drafted = self.speculation.guess(sequence.tokens, sequence.id, sequence.limit)[:room]

    def _count(self, taken: int, guesses: int, accepted: int) -> None:
        self._counts["output"] += taken
        self._counts["drafted"] += guesses
        self._counts["accepted"] += accepted

    def _record(self, flight: Flight, outputs: list[RequestOutput | None]) -> None:
        """Tell of the step. What a row drew behind its end was never given to anybody, and does not count."""
        plan, start = flight.plan, max(flight.start_s, self._landed_s)
        drawn = [len(output.tokens) if output else 0 for output in outputs]
        self._landed_s = self.clock()
        self.events.append(
            StepEvent(
                index=self._steps,
                start_s=start,
                seconds=self._landed_s - start,
                schedule_s=flight.decided_s - flight.start_s,
                rows=tuple(one._replace(drawn=got) for one, got in zip(flight.held, drawn, strict=True)),
                waiting=len(self.scheduler.waiting),
                running=len(self.scheduler.running),
                blocks_used=self.blocks.in_use,
                blocks_total=self.blocks.pool.num_blocks,
                admitted=tuple((one.id, one.found) for one in plan.admitted),
                preempted=tuple(one.id for one in plan.preempted),
                swapped=tuple(one.id for one in plan.swapped),
                finished=tuple(self._ended),
            )
        )
        self._steps += 1
        self._ended = []


def _output(
    sequence: Sequence, drawn: Drawn, text: str, given: int, reason: FinishReason | None
) -> RequestOutput:
    """given: tokens of the answer, these included."""
    return RequestOutput(
        id=sequence.id,
        tokens=drawn.tokens,
        text=text,
        logprobs=drawn.logprobs,
        finish_reason=reason,
        num_prompt_tokens=sequence.prompt_length,
        num_output_tokens=given,
        num_cached_tokens=sequence.known_prefix,
    )
