"""Who runs in the next step, and how many of their tokens. One rule: computed tokens chase known ones.

Every request has tokens that are known and, of those, tokens that are computed. A step computes some of the
difference for some requests, together no more than a budget. A prompt is a difference of many tokens, decode
one of a single token, a prefix hit a smaller one, a preempted request a larger one, a guess (speculation) one
of a few more: nothing of these is a case of its own. (After vLLM's V1 scheduler; chunks and mixed steps:
Agrawal et al. 2024, Sarathi-Serve.)
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass

from labcore.errors import ConfigError
from labcore.serving.blocks import BlockManager
from labcore.serving.policies import Policy, Queue
from labcore.serving.sequence import Plan, Row, Sequence


@dataclass(frozen=True)
class Limits:
    """Of one step. max_num_seqs: requests that run at once. token_budget: tokens that it computes.

    chunked: prompts may be computed in parts; False: a prompt goes whole, in a step without others' decode,
    however long it is. Raises ConfigError for limits below 1.
    """

    max_num_seqs: int = 32
    token_budget: int = 512
    chunked: bool = True

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "token_budget"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")


class Scheduler:
    """The queue and the running, and the plan of every step. It moves no tensor."""

    def __init__(self, blocks: BlockManager, policy: Policy, limits: Limits) -> None:
        self.blocks, self.policy, self.limits = blocks, policy, limits
        self.waiting: list[Sequence] = []  # in order of their turn
        self.running: list[Sequence] = []
        self.more_to_come = False  # whether further requests were announced: fixed batches then wait for them
        self.swaps: Callable[[Sequence], bool] = _never  # whether a preempted one is set aside, not forgotten
        self._places = self._added = 0

    def add(self, sequence: Sequence) -> None:
        """To the queue, behind those whose turn is before."""
        if not sequence.preemptions:
            sequence.number, self._added = self._added, self._added + 1
        bisect.insort(self.waiting, sequence, key=lambda one: one.turn)

    def remove(self, sequence: Sequence) -> None:
        """Out of queue or batch, and its blocks back."""
        (self.running if sequence in self.running else self.waiting).remove(sequence)
        self.blocks.give_back(sequence)
        sequence.swapped = None

    def sweep(self) -> None:
        """A fixed batch is over when everyone in it is."""
        if self.running and all(sequence.lingers for sequence in self.running):
            for sequence in list(self.running):
                self.remove(sequence)

    def schedule(self, now: float) -> Plan:
        """The next step. Its rows have their blocks; no rows: there is nothing to do yet."""
        self.sweep()
        plan = Plan([])
        if not self.limits.chunked and (rows := self._whole_prompts(plan, now)):
            return Plan(rows, plan.admitted)
        budget = self._continue_running(plan, self.limits.token_budget)
        if self.limits.chunked and not plan.preempted:
            self._admit(plan, budget, now)
        return plan

    # Those who run

    def _continue_running(self, plan: Plan, budget: int) -> int:
        """Decode first, so that nobody's tokens wait for somebody's prompt; then prompts in part."""
        # Those who only keep their places take what budget is left: else they would keep others from ending.
        order = sorted(self.running, key=lambda one: (one.lingers, not one.decoding, one.turn))
        for sequence in order:
            if sequence not in self.running or sequence.full or budget < 1:
                continue
            if sequence.drafted:
                self._cut_guesses(sequence, budget)
            new = min(sequence.pending + len(sequence.drafted), budget)
            if self._make_room(sequence, new, plan):
                plan.rows.append(Row(sequence, _start(sequence), new))
                budget -= new
        return budget

    def _cut_guesses(self, sequence: Sequence, budget: int) -> None:
        """Guesses take what budget and blocks are left over: nobody gives way to them."""
        del sequence.drafted[max(0, budget - sequence.pending) :]
        if not self.blocks.can_take(sequence, len(sequence.tokens) + len(sequence.drafted)):
            sequence.drafted = []

    def _make_room(self, sequence: Sequence, new: int, plan: Plan) -> bool:
        """Blocks for its next tokens, at the cost of whoever's turn is last; False: it was itself."""
        if not sequence.lingers:
            while not self.blocks.can_take(sequence, sequence.computed + new):
                victim = self._last(plan)
                self._preempt(victim, plan)
                if victim is sequence:
                    return False
            self.blocks.take(sequence, sequence.computed + new)
        return True

    def _last(self, plan: Plan) -> Sequence:
        """Whose turn is last among the running that hold blocks."""
        return max((one for one in self.running if not one.lingers), key=lambda one: one.turn)

    def _preempt(self, victim: Sequence, plan: Plan) -> None:
        """Back to the queue; what it has computed is set aside or will be computed again."""
        self.running.remove(victim)
        plan.rows[:] = [row for row in plan.rows if row.sequence is not victim]
        victim.drafted = []
        self.blocks.trim(victim)  # room that this step or its guesses took: nothing is in it
        if self.swaps(victim):
            self.blocks.set_aside(victim)
            plan.swapped.append(victim)
        else:
            self.blocks.give_back(victim)
        victim.preemptions += 1
        plan.preempted.append(victim)
        self.add(victim)

    # Those who wait

    def _admit(self, plan: Plan, budget: int, now: float) -> None:
        """As many of the waiting as policy, budget and blocks allow, in order of their turn."""
        self._open_places(now)
        while self._places > 0 and budget > 0 and len(self.running) < self.limits.max_num_seqs:
            if not (taken := self._admit_next(plan, budget)):
                break
            budget -= taken
        self._close_places()

    def _whole_prompts(self, plan: Plan, now: float) -> list[Row]:
        """Without chunks: prompts go whole in steps of their own, the first however long it is."""
        self._open_places(now)
        budget = self.limits.token_budget
        while self._places > 0 and self.waiting and len(self.running) < self.limits.max_num_seqs:
            length = len(self.waiting[0].tokens)
            if (plan.rows and length > budget) or not (taken := self._admit_next(plan, length)):
                break
            budget -= taken
        self._close_places()
        return plan.rows

    def _open_places(self, now: float) -> None:
        """Ask the policy how many may join. A fixed batch that has begun to fill goes on until it is full or
        nobody waits."""
        if not self.waiting:
            self._places = 0
        elif not (self._places and self.policy.fixed_batch):
            oldest = now - min(one.arrival_s for one in self.waiting)
            queue = Queue(len(self.waiting), len(self.running), oldest, self.more_to_come)
            self._places = self.policy.admits(queue)

    def _close_places(self) -> None:
        """Nobody joins a batch later that nobody else waited for, or that is as large as the engine takes."""
        if not self.waiting or len(self.running) >= self.limits.max_num_seqs:
            self._places = 0

    def _admit_next(self, plan: Plan, budget: int) -> int:
        """Let the first of the waiting join; returns the tokens it computes, 0 where blocks are missing."""
        if not self.waiting or not self._begin(self.waiting[0], budget):
            self._places = 0
            return 0
        sequence = self.waiting.pop(0)
        new = min(sequence.pending, budget)
        self.blocks.take(sequence, sequence.computed + new)
        self.running.append(sequence)
        sequence.admissions += 1
        plan.admitted.append(sequence)
        plan.rows.append(Row(sequence, sequence.computed, new))
        self._places -= 1
        return new

    def _begin(self, sequence: Sequence, budget: int) -> bool:
        """Fetch or find what is computed already. False: there are too few blocks for its next tokens now."""
        if sequence.swapped is not None:
            aside = sequence.swapped[1]
            if not self.blocks.can_take(sequence, aside + min(sequence.pending - aside, budget)):
                return False
            self.blocks.fetch(sequence)
            sequence.found = 0
            return True
        sequence.found = self.blocks.adopt(sequence)
        if self.blocks.can_take(sequence, sequence.computed + min(sequence.pending, budget)):
            if not sequence.admissions:
                self.blocks.count(sequence)
                sequence.known_prefix = sequence.found
            return True
        self.blocks.pool.free(sequence.blocks)
        sequence.blocks, sequence.computed = [], 0
        return False


def _start(sequence: Sequence) -> int:
    """Where its next tokens begin; a lingering one computes its last position again."""
    return sequence.computed - 1 if sequence.lingers else sequence.computed


def _never(sequence: Sequence) -> bool:
    return False
