"""Whether a preempted request's blocks are copied to the host or computed again, by what both would cost."""

from __future__ import annotations

from typing import Literal

from labcore.errors import ConfigError
from labcore.serving.sequence import Plan, Sequence

Preemption = Literal["auto", "recompute", "swap"]
HOST_BYTES = 1 << 30  # most that lies aside at once
LINK = 5e9  # bytes a second from and to the host, until a faster estimate is handed in
LEAST_TOKENS = 32  # of prompts in a step that tells what computing a token costs


class SwapChoice:
    """Asked by the scheduler for each victim. block_bytes: of all layers. link: bytes a second, each way.

    Until a prompt has been computed nothing is known of the other side, and victims are computed again.
    """

    def __init__(self, preemption: Preemption, block_bytes: int, link: float = LINK) -> None:
        if preemption not in ("auto", "recompute", "swap"):
            raise ConfigError(f"preemption is {preemption!r}; choose auto, recompute or swap.")
        self.preemption, self.block_bytes, self.link = preemption, block_bytes, link
        self.seconds_per_token: float | None = None
        self.aside: dict[str, int] = {}

    def __call__(self, victim: Sequence) -> bool:
        """True: copy its blocks to the host."""
        nbytes = len(victim.blocks) * self.block_bytes
        if (
            self.preemption == "recompute"
            or not victim.blocks
            or sum(self.aside.values()) + nbytes > HOST_BYTES
        ):
            return False
        if self.preemption == "auto":
            if self.seconds_per_token is None:
                return False
            if 2 * nbytes / self.link >= victim.computed * self.seconds_per_token:
                return False
        self.aside[victim.id] = nbytes
        return True

    def saw(self, plan: Plan, seconds: float) -> None:
        """Learn from a step: what a token of a prompt costs, and who came back."""
        for sequence in plan.admitted:
            self.aside.pop(sequence.id, None)
        tokens = sum(row.new for row in plan.rows)
        prompts = sum(row.new for row in plan.rows if row.new > 1)
        if prompts >= max(LEAST_TOKENS, tokens / 2):  # a step of single tokens waits for other things
            each = seconds / tokens
            known = self.seconds_per_token
            self.seconds_per_token = each if known is None else 0.8 * known + 0.2 * each
