"""Whose time it was: every instant of a traced step is given to one kind of work, or to none.

On a CPU the time of an operator is the work; on a GPU it is only the asking, and the kernels on the device's
streams are the work. Either way an instant counts once, whatever nests or overlaps, so that the kinds and
the gaps between them add up to the step. Communication that overlaps other work is hidden by it: what counts
is the time for which it alone held the step.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from labcore.perf.profiling.events import Raw, Traced
from labcore.perf.profiling.kinds import COMMUNICATION, GAPS, KINDS, OTHER, kind_of, own_kind, whole_kind


@dataclass(frozen=True)
class Segment:
    """A stretch of one kind of work. rank: of two at one instant, the lower one has the time.

    operations: how many leaf operators it stands for. first: whether it is the first stretch of its event.
    """

    name: str
    kind: str
    start: float
    end: float
    lane: str = "host"
    rank: int = 0
    operations: int = 1
    first: bool = True


@dataclass
class _Node:
    """A host event and those that ran inside it."""

    event: Raw
    children: list[_Node] = field(default_factory=list)

    @property
    def whole(self) -> str | None:
        return whole_kind(self.event.name, self.event.label)

    @property
    def own(self) -> str | None:
        return own_kind(self.event.name, self.event.label)

    def leaves(self) -> int:
        """Operators in it that work and in which none other does."""
        inside = sum(child.leaves() for child in self.children)
        return inside or int(bool(self.whole or self.own))


def host_segments(traced: Traced) -> list[Segment]:
    """What the host did: on the step's own thread first, then communication elsewhere, then the rest."""
    found: list[Segment] = []
    for thread, roots in _trees(traced.events).items():
        own = thread == traced.thread
        for root in roots:
            found += _walk(root, "host" if own else f"host {thread}", 0 if own else 2)
    for event in traced.events:
        if event.stream is None and event.loose and (kind := whole_kind(event.name, event.label)):
            lane = f"host {event.thread}"
            found.append(Segment(event.name, kind, event.start, event.end, lane, _rank(kind, 2), 0))
    return found


def device_segments(traced: Traced) -> list[Segment]:
    """What the device did: one stretch a kernel, of the kind of the host event that launched it."""
    launchers: dict[int, str] = {}
    for roots in _trees(traced.events).values():
        for root in roots:
            _note_launchers(root, None, launchers)
    kernels = (event for event in traced.events if event.stream is not None)
    found = []
    for event in kernels:
        kind = launchers.get(event.launched_by) or kind_of(event.name) or OTHER
        rank = int(kind == COMMUNICATION)
        found.append(Segment(event.name, kind, event.start, event.end, f"stream {event.stream}", rank))
    return found


def seconds_by_kind(segments: Sequence[Segment], seconds: float) -> dict[str, float]:
    """Seconds of every kind within 0 .. seconds, each instant given once; what nobody has are the gaps."""
    waiting = sorted(segments, key=lambda segment: segment.start)
    bounds = {0.0, seconds}
    for segment in waiting:
        bounds |= {min(max(at, 0.0), seconds) for at in (segment.start, segment.end)}
    totals = dict.fromkeys(KINDS, 0.0)
    running: list[tuple[int, int, float, str]] = []  # rank, order of start, end, kind
    begun = 0
    for start, end in pairwise(sorted(bounds)):
        while begun < len(waiting) and waiting[begun].start <= start:
            segment = waiting[begun]
            heapq.heappush(running, (segment.rank, begun, segment.end, segment.kind))
            begun += 1
        while running and running[0][2] <= start:
            heapq.heappop(running)
        totals[running[0][3] if running else GAPS] += end - start
    return totals


def _trees(events: Iterable[Raw]) -> dict[int, list[_Node]]:
    """Roots of the host events of each thread."""
    threads: dict[int, list[_Node]] = defaultdict(list)
    open_nodes: dict[int, list[_Node]] = defaultdict(list)
    nested = [event for event in events if event.stream is None and not event.loose]
    for event in sorted(nested, key=lambda event: (event.start, -event.end)):
        stack, node = open_nodes[event.thread], _Node(event)
        while stack and stack[-1].event.end <= event.start:
            stack.pop()
        (stack[-1].children if stack else threads[event.thread]).append(node)
        stack.append(node)
    return threads


def _walk(node: _Node, lane: str, rank: int) -> Iterator[Segment]:
    """The outermost event of a known kind has all of its time; above it, only what is left between."""
    event = node.event
    if kind := node.whole:
        yield Segment(event.name, kind, event.start, event.end, lane, _rank(kind, rank), node.leaves())
        return
    at, own, first = event.start, node.own, True
    for child in node.children:
        if own and child.event.start > at:
            yield Segment(event.name, own, at, child.event.start, lane, rank, 0, first)
            first = False
        yield from _walk(child, lane, rank)
        at = child.event.end
    if own and event.end > at:
        yield Segment(event.name, own, at, event.end, lane, rank, 0 if node.children else 1, first)


def _rank(kind: str, rank: int) -> int:
    """Another thread's collective is what the step waits for, rather than the copies it makes on the way."""
    return min(rank, 1) if kind == COMMUNICATION else rank


def _note_launchers(node: _Node, kind: str | None, launchers: dict[int, str]) -> None:
    kind = kind or node.whole
    if kind and "::" in node.event.name:  # calls of the driver are numbered by another counter
        launchers[node.event.id] = kind
    for child in node.children:
        _note_launchers(child, kind, launchers)
