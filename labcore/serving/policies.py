"""When waiting requests may join: the one thing in which generations of servers differ.

The engine below is the same for all of them, so that a comparison compares policies and not codebases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from labcore.errors import ConfigError


@dataclass(frozen=True)
class Queue:
    """What a policy sees. oldest_s: how long the first waiting request has waited. more_to_come: whether
    somebody said that further requests will follow."""

    waiting: int
    running: int
    oldest_s: float
    more_to_come: bool


class Policy(Protocol):
    """How many of the waiting may join now, and whether a batch keeps its places until it is over."""

    name: ClassVar[str]
    fixed_batch: ClassVar[bool]

    def admits(self, queue: Queue) -> int:
        """At most so many."""


@dataclass(frozen=True)
class Continuous:
    """A request joins at the next step and leaves at its end (Yu et al. 2022, Orca)."""

    name: ClassVar[str] = "continuous"
    fixed_batch: ClassVar[bool] = False

    def admits(self, queue: Queue) -> int:
        """Everyone; the engine's limits decide."""
        return queue.waiting


@dataclass(frozen=True)
class OneByOne:
    """The next request begins when the one before is over."""

    name: ClassVar[str] = "one-by-one"
    fixed_batch: ClassVar[bool] = False

    def admits(self, queue: Queue) -> int:
        """One, when nobody runs."""
        return 0 if queue.running else 1


@dataclass(frozen=True)
class Static:
    """Batches of a fixed size: the next begins when the longest request of the one before is over.

    A batch waits until it is full, or until nobody else will come. Ended requests keep their places, which
    are computed for as padding is.
    """

    batch: int = 8
    name: ClassVar[str] = "static"
    fixed_batch: ClassVar[bool] = True

    def admits(self, queue: Queue) -> int:
        """A batch, when nobody runs and it is full."""
        if queue.running or (queue.waiting < self.batch and queue.more_to_come):
            return 0
        return self.batch


@dataclass(frozen=True)
class Dynamic:
    """As static, but a batch does not wait longer than timeout_s for its places to fill."""

    batch: int = 8
    timeout_s: float = 0.5
    name: ClassVar[str] = "dynamic"
    fixed_batch: ClassVar[bool] = True

    def admits(self, queue: Queue) -> int:
        """A batch, when nobody runs and it is full or somebody has waited long enough."""
        full = queue.waiting >= self.batch or not queue.more_to_come
        if queue.running or not (full or queue.oldest_s >= self.timeout_s):
            return 0
        return self.batch


POLICIES: dict[str, type[Policy]] = {kind.name: kind for kind in (Continuous, OneByOne, Static, Dynamic)}


def policy_of(choice: str | Policy) -> Policy:
    """A policy by its name, with its usual settings. Raises ConfigError for another name."""
    if not isinstance(choice, str):
        return choice
    if choice not in POLICIES:
        raise ConfigError(f"There is no policy {choice!r}; choose one of {', '.join(POLICIES)}.")
    return POLICIES[choice]()
