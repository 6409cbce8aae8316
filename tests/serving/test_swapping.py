"""Blocks set aside in host memory: when it pays, what comes back, and that nothing stays behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from labcore.cache import BlockStore
from labcore.errors import CacheFull, ConfigError
from labcore.generation.answer import Answer
from labcore.serving import LLMEngine, Request, swapping
from labcore.serving.blocks import BlockManager
from labcore.serving.sequence import Plan, Row, Sequence
from labcore.serving.swapping import SwapChoice
from tests.serving.helpers import (
    alone,
    check,
    drain,
    empty,
    follow,
    followed,
    prompt,
    request,
    shadowed,
    small_model,
    take,
)  # fmt: skip

MODEL = small_model()
PLAIN = small_model(eos=False)


def sequence_of(one: Request) -> Sequence:
    return Sequence(one, 0.0, len(one.prompt) + 8, Answer(MODEL, list(one.prompt), one.stopping))


def victim(computed: int, blocks: int, id: str = "v") -> Sequence:
    made = sequence_of(request(id, prompt(40)))
    made.computed, made.blocks = computed, list(range(blocks))
    return made


def test_the_cheaper_way_is_taken() -> None:
    """10 blocks of 1 MB over 1 GB/s, there and back: 20 ms. 40 tokens again: 40 or 4 ms."""
    choice = SwapChoice("auto", 1_000_000, link=1e9)
    assert not choice(victim(40, 10)), "nothing is known of what computing costs"
    step = Plan([Row(victim(0, 10), 0, 40)])
    choice.saw(step, 0.040)
    assert choice.seconds_per_token == pytest.approx(0.001)
    assert choice(victim(40, 10))
    assert choice.aside == {"v": 10_000_000}
    fast = SwapChoice("auto", 1_000_000, link=1e9)
    fast.saw(step, 0.004)
    assert not fast(victim(40, 10))


def test_small_steps_teach_nothing_and_large_ones_are_averaged() -> None:
    choice = SwapChoice("auto", 1)
    choice.saw(Plan([Row(victim(0, 1), 0, 31)]), 1.0)
    assert choice.seconds_per_token is None
    choice.saw(Plan([Row(victim(0, 1), 0, 40)]), 0.4)
    choice.saw(Plan([Row(victim(0, 1), 0, 40)]), 0.8)
    assert choice.seconds_per_token == pytest.approx(0.8 * 0.01 + 0.2 * 0.02)


def test_what_is_said_is_done() -> None:
    assert SwapChoice("swap", 1_000_000, link=1.0)(victim(1, 1))
    assert not SwapChoice("swap", 1)(victim(0, 0)), "there is nothing to copy"
    never = SwapChoice("recompute", 1)
    never.saw(Plan([Row(victim(0, 1), 0, 40)]), 1e6)
    assert not never(victim(40, 1))
    with pytest.raises(ConfigError, match="'drop'; choose auto, recompute or swap"):
        SwapChoice("drop", 1)  # type: ignore[arg-type]


def test_host_memory_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swapping, "HOST_BYTES", 25)
    choice = SwapChoice("swap", 10)
    assert choice(victim(1, 2, "a"))
    assert not choice(victim(1, 1, "b"))
    back = victim(1, 2, "a")
    choice.saw(Plan([], admitted=[back]), 0.0)
    assert choice(victim(1, 1, "b"))


def test_the_same_bytes_come_back() -> None:
    store = BlockStore(MODEL.config, 6, 4)
    blocks = BlockManager(store.pool, store)
    one = sequence_of(request("a", prompt(10)))
    blocks.take(one, 10)
    one.computed = 10
    for layer in store.layers:
        layer.normal_()
    held = [layer[:, :, one.blocks].clone() for layer in store.layers]
    blocks.set_aside(one)
    assert (one.blocks, one.computed, store.pool.num_free) == ([], 0, 6)
    for layer in store.layers:
        layer.zero_()
    other = sequence_of(request("b", prompt(5)))
    blocks.take(other, 5)
    blocks.fetch(one)
    assert (one.computed, one.swapped) == (10, None)
    assert all(
        torch.equal(layer[:, :, one.blocks], was) for layer, was in zip(store.layers, held, strict=True)
    )
    blocks.check([one, other])


def test_nothing_is_lost_where_there_is_no_room_to_come_back() -> None:
    store = BlockStore(MODEL.config, 3, 4)
    blocks = BlockManager(store.pool, store, prefix_caching=False)
    one, other = sequence_of(request("a", prompt(10))), sequence_of(request("b", prompt(5)))
    blocks.take(one, 10)
    one.computed = 10
    blocks.set_aside(one)
    blocks.take(other, 5)
    with pytest.raises(CacheFull):
        blocks.fetch(one)
    assert one.swapped is not None
    blocks.check([one, other])


SETTINGS: dict[str, Any] = {"num_blocks": 7, "block_size": 2, "preemption": "swap", "prefix_caching": False}


def crowded(engine: LLMEngine) -> list[Request]:
    requests = [request(f"r{index}", prompt(4, index), 9, ignore_eos=True) for index in range(3)]
    for one in requests:
        engine.add(one)
    return requests


def test_answers_are_the_same_and_nothing_is_computed_twice() -> None:
    engine = LLMEngine(PLAIN, **SETTINGS)
    requests = crowded(engine)
    heard = drain(engine)
    for one in requests:
        assert heard[one.id].tokens == alone(PLAIN, one).tokens
    assert engine.stats.preemptions > 0
    swapped = [id for event in engine.events for id in event.swapped]
    assert swapped == [id for event in engine.events for id in event.preempted]
    assert sum(event.tokens for event in engine.events) == 3 * (4 + 9 - 1)
    empty(engine)


def test_who_is_aside_and_leaves_leaves_nothing() -> None:
    engine = shadowed(MODEL, next=lambda tokens: follow(tokens) % 15, **SETTINGS)
    crowded(engine)
    heard = {}
    while not (engine.last_event and engine.last_event.swapped):
        take(engine, 1, heard)
    away = engine.last_event.swapped[0]
    assert list(engine.swap_choice.aside) == [away]
    output = engine.abort(away)
    assert output is not None
    assert output.num_output_tokens == len(heard[away].tokens)
    assert engine.swap_choice.aside == {}
    check(engine)
    drain(engine, heard=heard)
    empty(engine)


def test_room_for_guesses_is_not_set_aside() -> None:
    """Who gives way in the very step that made room for its guesses has blocks with nothing in them."""

    class Eager:
        def guess(self, known: list[int], key: str, limit: int) -> list[int]:
            return [15] * 3  # never right

    def next(tokens: list[int]) -> int:
        return follow(tokens) % 15

    engine = shadowed(MODEL, token_budget=8, speculation=Eager(), next=next, **{**SETTINGS, "num_blocks": 8})
    requests = [request("guesses", prompt(4, 1), 9), request("urgent", prompt(10, 2), 2, priority=-1)]
    engine.add(requests[0])
    heard = take(engine)
    engine.add(requests[1])
    drain(engine, 200, heard)  # `check` looks at what is set aside
    assert {id for event in engine.events for id in event.swapped} == {"guesses"}
    for one in requests:
        assert heard[one.id].tokens == followed(one, engine.max_model_len, next)
    empty(engine)
