"""Four generations of servers: who may join when."""

from __future__ import annotations

from typing import Any

import pytest

from labcore.errors import ConfigError
from labcore.serving import Continuous, Dynamic, OneByOne, Static
from labcore.serving.policies import Policy, Queue, policy_of
from tests.serving.helpers import (
    Clock,
    check,
    drain,
    empty,
    follow,
    prompt,
    request,
    shadowed,
    small_model,
    take,
)

MODEL = small_model()


def endless(tokens: list[int]) -> int:
    """Never the end."""
    return follow(tokens) % 15


@pytest.mark.parametrize(
    ("policy", "queue", "may"),
    [
        (Continuous(), Queue(5, 3, 0.0, True), 5),
        (OneByOne(), Queue(5, 0, 0.0, True), 1),
        (OneByOne(), Queue(5, 1, 9.0, False), 0),
        (Static(4), Queue(3, 0, 9.0, True), 0),
        (Static(4), Queue(3, 0, 0.0, False), 4),
        (Static(4), Queue(4, 0, 0.0, True), 4),
        (Static(4), Queue(9, 1, 9.0, False), 0),
        (Dynamic(4, 0.5), Queue(3, 0, 0.49, True), 0),
        (Dynamic(4, 0.5), Queue(3, 0, 0.5, True), 4),
        (Dynamic(4, 0.5), Queue(4, 0, 0.0, True), 4),
        (Dynamic(4, 0.5), Queue(3, 0, 0.0, False), 4),
        (Dynamic(4, 0.5), Queue(9, 1, 9.0, False), 0),
    ],
)
def test_how_many_may_join(policy: Policy, queue: Queue, may: int) -> None:
    assert policy.admits(queue) == may


def test_a_policy_by_its_name() -> None:
    for name in ("continuous", "static", "dynamic", "one-by-one"):
        assert policy_of(name).name == name
    assert policy_of(Static(3)).batch == 3
    with pytest.raises(ConfigError, match="no policy 'orca'.*continuous, one-by-one, static, dynamic"):
        policy_of("orca")


def test_a_static_batch_waits_while_more_will_come() -> None:
    engine = shadowed(MODEL, Static(3), num_blocks=20, next=endless)
    engine.scheduler.more_to_come = True
    for index in range(2):
        engine.add(request(f"r{index}", prompt(3, index), 2))
        assert engine.step() == []
        assert engine.idle_step
    assert engine.last_event is None
    assert engine.stats.waiting == 2
    engine.add(request("r2", prompt(3, 2), 2))
    heard = take(engine)
    assert sorted(heard) == ["r0", "r1", "r2"]
    drain(engine, heard=heard)
    engine.add(request("alone", prompt(3), 2))
    assert engine.step() == []
    engine.scheduler.more_to_come = False
    drain(engine)
    empty(engine)


def test_a_dynamic_batch_waits_so_long_and_no_longer() -> None:
    clock = Clock()
    engine = shadowed(MODEL, Dynamic(3, 0.5), num_blocks=20, clock=clock, next=endless)
    engine.scheduler.more_to_come = True
    engine.add(request("a", prompt(3), 2))
    for _ in range(4):
        assert engine.step() == []
        clock.sleep(0.1)
    engine.add(request("b", prompt(3, 1), 2))  # the first one's time counts
    assert engine.step() == []
    clock.sleep(0.11)
    assert {output.id for output in engine.step()} == {"a", "b"}
    assert engine.last_event is not None
    assert engine.last_event.start_s == pytest.approx(0.51)


def test_one_by_one_computes_for_one() -> None:
    engine = shadowed(MODEL, "one-by-one", num_blocks=20, next=endless)
    for index in range(4):
        engine.add(request(f"r{index}", prompt(3, index), 3))
    drain(engine)
    assert [[row.id for row in event.rows] for event in engine.events] == [
        [f"r{index}"] for index in range(4) for _ in range(3)
    ]


@pytest.mark.parametrize(("policy", "useful"), [("continuous", 1.0), (Static(4), 0.625), (Dynamic(4), 0.625)])
def test_utilisation_of_uneven_lengths(policy: Any, useful: float) -> None:
    """Lengths 2, 6, 3, 4: a fixed batch computes 4 times 6 places for 15 tokens."""
    engine = shadowed(MODEL, policy, num_blocks=20, next=endless)
    for index, new in enumerate((2, 6, 3, 4)):
        engine.add(request(f"r{index}", prompt(3, index), new))
    drain(engine)
    rows = [row for event in engine.events for row in event.rows]
    assert sum(row.drawn for row in rows) == 15
    assert sum(row.drawn for row in rows) / len(rows) == useful
    assert len(engine.events) == 6


def test_equal_lengths_make_policies_equal() -> None:
    """The control: nothing is gained by continuous batching where all answers are as long."""
    steps = []
    for policy in ("continuous", Static(4)):
        engine = shadowed(MODEL, policy, num_blocks=20, max_num_seqs=4, next=endless)
        for index in range(8):
            engine.add(request(f"r{index}", prompt(3, index), 5))
        drain(engine)
        steps.append(engine.stats.steps)
    assert steps == [10, 10]


def test_who_leaves_a_fixed_batch_ends_it_for_those_who_linger() -> None:
    engine = shadowed(MODEL, Static(2), num_blocks=20, next=endless)
    for index, new in enumerate((1, 9)):
        engine.add(request(f"r{index}", prompt(3, index), new))
    take(engine, 2)
    assert engine.stats.running == 2
    assert engine.abort("r0") is None, "it is over, though its place is kept"
    engine.add(request("r0", prompt(4, 5), 2))  # its id is free again
    left = engine.abort("r1")
    assert left is not None
    assert left.finish_reason == "abort"
    check(engine)
    assert engine.stats.running == 0
    assert len(drain(engine)["r0"].tokens) == 2
    empty(engine)
