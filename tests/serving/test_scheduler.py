"""Who runs, with how many tokens, and at whose cost: the cases that random histories found, made small."""

from __future__ import annotations

import pytest

from labcore.errors import ConfigError, OutOfMemory
from labcore.serving import LLMEngine, Static
from labcore.serving.drawing import Drawn
from labcore.serving.metrics import records_from_events
from labcore.serving.runner import Immediate
from labcore.serving.scheduler import Limits
from labcore.serving.sequence import Plan
from labcore.serving.swapping import Preemption
from tests.serving.helpers import (
    Clock,
    Heard,
    InstantRunner,
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
LONG = small_model(context=5000)


def endless(tokens: list[int]) -> int:
    """Never the end."""
    return follow(tokens) % 15


def rows_of(engine: LLMEngine, id: str) -> list[tuple[str, int, int]]:
    return [(row.kind, row.start, row.new) for event in engine.events for row in event.rows if row.id == id]


def test_a_long_prompt_goes_in_nine_chunks_beside_eight_decodes() -> None:
    """4096 tokens, 512 a step of which 8 decode: 504 are left for the prompt, 8.1 chunks."""
    engine = LLMEngine(LONG, num_blocks=300, max_model_len=4500)
    engine.runner = InstantRunner(endless)
    for index in range(8):
        engine.add(request(f"d{index}", (1, 2), 100))
    for _ in range(2):
        engine.step()
    engine.add(request("long", [3] * 4096, 4))
    for _ in range(14):
        engine.step()
    chunks = [new for kind, _, new in rows_of(engine, "long") if kind == "prefill"]
    assert chunks == [504] * 8 + [64]
    assert all(len(rows_of(engine, f"d{index}")) == 16 for index in range(8)), "a decode was stalled"


def test_whole_prompts_stall_everyone_else() -> None:
    engine = LLMEngine(LONG, num_blocks=300, max_model_len=4500, chunked=False)
    engine.runner = InstantRunner(endless)
    engine.add(request("d", (1, 2), 100))
    engine.step()
    engine.step()
    engine.add(request("long", [3] * 4096, 4))
    engine.step()
    event = engine.last_event
    assert event is not None
    assert [(row.id, row.new) for row in event.rows] == [("long", 4096)]
    engine.step()
    assert engine.last_event is not None
    assert {row.id for row in engine.last_event.rows} == {"d", "long"}


def test_whole_prompts_share_a_step_as_far_as_the_budget_goes() -> None:
    engine = shadowed(MODEL, chunked=False, token_budget=10, num_blocks=20)
    for index, length in enumerate((4, 6, 1)):
        engine.add(request(f"r{index}", prompt(length, index), 3))
    heard = take(engine)
    assert engine.last_event is not None
    assert [row.id for row in engine.last_event.rows] == ["r0", "r1"]
    drain(engine, heard=heard)


@pytest.mark.parametrize("budget", [1, 2, 5])
def test_places_that_are_only_kept_starve_nobody(budget: int) -> None:
    """The short request ends first and keeps its place; the budget is too small for both."""
    engine = shadowed(MODEL, Static(3), token_budget=budget, num_blocks=20, next=endless)
    for index, new in enumerate((1, 5, 3)):
        engine.add(request(f"r{index}", prompt(4, index), new))
    heard = drain(engine, 200)
    assert [len(heard[f"r{index}"].tokens) for index in range(3)] == [1, 5, 3]
    empty(engine)


def test_a_batch_is_over_when_its_last_member_had_to_give_way() -> None:
    """Blocks of those who linger are missing to the last who runs: it waits, and they would linger on."""
    engine = shadowed(MODEL, Static(2), num_blocks=6, block_size=2, next=endless, prefix_caching=False)
    engine.add(request("short", prompt(6, 1), 1))
    engine.add(request("long", prompt(4, 2), 8))
    heard = drain(engine, 100)
    assert len(heard["long"].tokens) == 8
    assert engine.stats.preemptions == 1
    empty(engine)


def test_two_that_came_at_once_do_not_preempt_each_other_for_ever() -> None:
    clock = Clock()
    engine = shadowed(
        MODEL, num_blocks=9, block_size=1, token_budget=2, prefix_caching=False, clock=clock, next=endless
    )
    for index in range(3):
        engine.add(request(f"r{index}", prompt(4, index), 5))
    assert list(drain(engine, 300)) == ["r0", "r1", "r2"]
    assert engine.stats.preemptions > 0
    turns = [id for event in engine.events for id, _ in event.finished]
    assert turns == ["r0", "r1", "r2"], "who came first was made to wait for who came later"


def test_a_block_behind_a_known_prefix_does_not_count_as_free() -> None:
    """Two compute the same prefix at once and one goes: the tree's copy lies before the other's end."""
    engine = shadowed(MODEL, num_blocks=8, block_size=2, next=endless)
    engine.add(request("first", (1, 2, 3, 4, 9), 1))
    engine.add(request("second", (1, 2, 3, 4, 5, 6, 7), 6))
    heard = take(engine)
    engine.add(request("third", prompt(9, 5), 6))
    drain(engine, 100, heard)
    empty(engine)


def test_blocks_computed_twice_become_one() -> None:
    engine = shadowed(MODEL, num_blocks=20, block_size=2, next=endless)
    for id in ("a", "b"):
        engine.add(request(id, (1, 2, 3, 4, 5), 4))
    heard = take(engine)
    tables = [one.blocks for one in engine.scheduler.running]
    assert tables[0][:2] == tables[1][:2]
    assert tables[0][2] != tables[1][2]
    drain(engine, heard=heard)
    empty(engine)


@pytest.mark.parametrize("settings", [{"chunked": False}, {"token_budget": 4}])
def test_nobody_joins_a_fixed_batch_late(settings: dict[str, int]) -> None:
    """It began with one request because nobody else was there; its other places stay empty."""
    engine = shadowed(MODEL, Static(4), num_blocks=20, next=endless, **settings)
    engine.add(request("a", prompt(4), 4))
    heard = take(engine)
    engine.add(request("b", prompt(3, 1), 2))
    drain(engine, heard=heard)
    last = max(event.index for event in engine.events if any(row.id == "a" for row in event.rows))
    first = min(event.index for event in engine.events if any(row.id == "b" for row in event.rows))
    assert first > last


def test_a_fixed_batch_fills_over_several_steps() -> None:
    engine = shadowed(MODEL, Static(3), token_budget=4, num_blocks=20, next=endless)
    for index in range(4):
        engine.add(request(f"r{index}", prompt(4, index), 6))
    drain(engine)
    joined = {id: event.index for event in engine.events for id, _ in event.admitted}
    ended = {id: event.index for event in engine.events for id, _ in event.finished}
    assert max(joined["r1"], joined["r2"]) < ended["r0"]
    assert joined["r3"] > max(ended[f"r{index}"] for index in range(3))


def test_priority_comes_before_arrival_and_arrival_before_the_rest() -> None:
    clock = Clock()
    engine = shadowed(MODEL, max_num_seqs=1, num_blocks=20, clock=clock)
    for id, priority in (("late", 1), ("a", 0), ("b", 0), ("urgent", -1), ("c", 0)):
        engine.add(request(id, prompt(3), 2, priority=priority))
        clock.sleep(1)
    drain(engine)
    assert [id for event in engine.events for id, _ in event.admitted] == ["urgent", "a", "b", "c", "late"]


def test_nobody_gives_way_to_guesses() -> None:
    class Eager:
        def guess(self, known: list[int], key: str, limit: int) -> list[int]:
            return [1] * 6

    engine = shadowed(
        MODEL, num_blocks=8, block_size=2, prefix_caching=False, speculation=Eager(), next=endless
    )
    for index, new in enumerate((4, 9)):  # what both hold is enough for them, not for all their guesses
        engine.add(request(f"r{index}", prompt(4, index), new))
    drain(engine)
    assert engine.stats.drafted > 0
    assert engine.stats.preemptions == 0


def test_a_prefix_is_asked_for_once_however_long_its_request_waits() -> None:
    engine = shadowed(MODEL, num_blocks=4, block_size=4, next=endless)
    engine.add(request("a", prompt(9), 7))
    engine.add(request("b", prompt(9), 2))  # the same prompt
    heard = drain(engine)
    assert heard["b"].cached == 8
    assert (engine.stats.prefix_queries, engine.stats.prefix_hits) == (18, 8)


def test_what_was_found_is_told_again_when_somebody_joins_again() -> None:
    engine = shadowed(MODEL, num_blocks=7, block_size=2, next=endless)
    engine.add(request("a", prompt(5, 1), 8))
    engine.add(request("b", prompt(5, 2), 8))
    heard = drain(engine)
    assert engine.stats.preemptions > 0
    starts = {(event.index, row.id): row.start for event in engine.events for row in event.rows}
    joined = [(event.index, id, found) for event in engine.events for id, found in event.admitted]
    assert all(starts[index, id] == found for index, id, found in joined)
    assert len(joined) == 2 + engine.stats.preemptions
    assert heard["b"].cached == 0, "of the prompt nothing was known when it came"


@pytest.mark.parametrize("preemption", ["recompute", "swap"])
def test_a_preempted_request_is_counted_once(preemption: Preemption) -> None:
    """Prompts that share nothing: what is found again after a preemption is no hit, and no new prompt."""
    settings = {"num_blocks": 17, "block_size": 2, "preemption": preemption, "next": endless}
    engine = shadowed(MODEL, clock=Clock(each=1.0), **settings)
    lengths = {f"r{index}": 6 + index for index in range(4)}
    arrivals = {}
    for index, (id, length) in enumerate(lengths.items()):
        arrivals[id] = engine.clock()
        engine.add(request(id, [index, *prompt(length - 1, index)], 10))
    heard, stats = drain(engine), engine.stats
    assert stats.preemptions > 0
    if preemption == "recompute":
        assert any(found for event in engine.events for _, found in event.admitted), "nothing was found again"
    assert (stats.prefix_queries, stats.prefix_hits) == (sum(lengths.values()), 0)
    assert (stats.prompt_tokens, stats.output_tokens) == (sum(lengths.values()), 40)
    for record in records_from_events(engine.events, arrivals):
        assert (record.prompt_tokens, record.output_tokens) == (lengths[record.id], 10)
        first = next(e for e in engine.events for row in e.rows if row.id == record.id and row.drawn)
        assert record.ttft_s == first.end_s - arrivals[record.id]
        assert heard[record.id].cached == 0


def test_a_step_that_failed_can_be_taken_again() -> None:
    engine = shadowed(MODEL, num_blocks=8, block_size=2, token_budget=5)
    works = engine.runner

    class Failing(Immediate):
        def execute(self, plan: Plan) -> list[Drawn]:
            raise OutOfMemory("no memory for this step")

    requests = [request(f"r{index}", prompt(5, index), 6) for index in range(3)]
    for one in requests:
        engine.add(one)
    heard: dict[str, Heard] = {}
    while engine.has_work:
        engine.runner = Failing()
        with pytest.raises(OutOfMemory):
            engine.step()
        engine.runner = works
        take(engine, 1, heard)
    for one in requests:
        assert heard[one.id].tokens == followed(one, engine.max_model_len)
    assert engine.stats.preemptions > 0
    empty(engine)


def test_limits_below_one_are_refused() -> None:
    for name in ("max_num_seqs", "token_budget"):
        with pytest.raises(ConfigError, match=f"{name} is 0"):
            Limits(**{name: 0})
    for settings in ({"num_blocks": 0}, {"block_size": 0}, {"max_num_seqs": 0}, {"max_model_len": 1}):
        with pytest.raises(ConfigError):
            LLMEngine(MODEL, **{"num_blocks": 4, **settings})
