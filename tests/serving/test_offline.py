"""Lists of prompts and traces of arrivals, without a server; time is a number here."""

from __future__ import annotations

import pytest

import labcore
from labcore.errors import CacheFull, ConfigError, PromptError
from labcore.serving import Dynamic, LLMEngine, RequestOutput, Static, answer, replay
from tests.serving.helpers import Clock, alone, empty, prompt, request, small_model

MODEL = small_model()


def test_answers_are_those_of_generate_in_their_order() -> None:
    prompts = [list(prompt(length, length)) for length in (9, 1, 16, 4)]
    engine = LLMEngine(MODEL, num_blocks=40)
    found = answer(engine, prompts, max_new_tokens=10, temperature=0.9, seed=5)
    for index, (tokens, one) in enumerate(zip(prompts, found, strict=True)):
        out = labcore.generate(MODEL, tokens, max_new_tokens=10, temperature=0.9, seed=5 + index)
        assert (one.tokens, one.finish_reason) == (out.tokens, out.finish_reason)
    again = answer(engine, prompts, max_new_tokens=10, temperature=0.9, seed=5)
    assert [one.tokens for one in again] == [one.tokens for one in found]
    assert again[2].num_cached_tokens == 0, "16 tokens are one block, whose last token is computed"
    empty(engine)


def test_prompts_that_cannot_be_served_leave_none_behind() -> None:
    engine = LLMEngine(MODEL, num_blocks=3, block_size=4)
    with pytest.raises(CacheFull):
        answer(engine, [[1, 2], [3] * 12], max_new_tokens=4)
    empty(engine)
    assert len(answer(engine, [[1, 2]], max_new_tokens=4)) == 1


def test_an_engine_that_serves_others_is_refused() -> None:
    engine = LLMEngine(MODEL, num_blocks=8)
    engine.add(request("other", prompt(3), 4))
    with pytest.raises(ConfigError, match="has 1 requests already"):
        answer(engine, [[1, 2]])
    with pytest.raises(ConfigError, match="has 1 requests already"):
        replay(engine, [request("a", prompt(3))])
    assert engine.stats.waiting == 1


def test_a_trace_is_played_at_its_times() -> None:
    clock = Clock()
    clock.now = 100.0
    engine = LLMEngine(MODEL, num_blocks=40, clock=clock)
    times = {"a": 0.0, "b": 2.5, "c": 2.5, "d": 40.0}
    requests = [request(id, prompt(4, at), 3, arrival_s=due) for at, (id, due) in enumerate(times.items())]
    steps: list[list[RequestOutput]] = []
    found = replay(engine, reversed(requests), sleep=clock.sleep, on_step=steps.append)
    assert {one.id: found[one.id].tokens for one in requests} == {
        one.id: alone(MODEL, one).tokens for one in requests
    }
    joined = {id: event.start_s - 100 for event in engine.events for id, _ in event.admitted}
    assert joined == pytest.approx(times)
    assert clock.now == pytest.approx(140)
    assert sum(len(output.tokens) for step in steps for output in step) == sum(
        len(one.tokens) for one in found.values()
    )
    empty(engine)


def test_who_comes_together_is_served_in_the_order_of_the_list() -> None:
    engine = LLMEngine(MODEL, "one-by-one", num_blocks=40, clock=Clock())
    requests = [request(f"r{index}", prompt(4, index), 2, arrival_s=0.0) for index in range(4)]
    found = replay(engine, requests, sleep=lambda _: None)
    assert [id for event in engine.events for id, _ in event.admitted] == ["r0", "r1", "r2", "r3"]
    assert list(found) == ["r0", "r1", "r2", "r3"]


@pytest.mark.parametrize(
    ("policy", "begins"), [(Static(2), [4.0, 4.0, 9.0]), (Dynamic(2, 0.5), [0.5, 4.5, 9.0])]
)
def test_fixed_batches_wait_as_their_policy_says(policy: Static | Dynamic, begins: list[float]) -> None:
    """Arrivals at 0, 4 and 9 s. Nobody comes after the last, so that it does not wait."""
    clock = Clock()
    engine = LLMEngine(MODEL, policy, num_blocks=40, clock=clock)
    requests = [
        request(f"r{index}", prompt(4, index), 2, arrival_s=due) for index, due in enumerate((0.0, 4.0, 9.0))
    ]
    replay(engine, requests, sleep=clock.sleep)
    joined = {id: event.start_s for event in engine.events for id, _ in event.admitted}
    assert [joined[one.id] for one in requests] == pytest.approx(begins, abs=0.003)


def test_lateness_counts_from_the_planned_arrival() -> None:
    """Every look at the clock takes 0.3 s: the engine falls behind, and arrivals stay where they were."""
    clock = Clock(each=0.3)
    engine = LLMEngine(MODEL, "one-by-one", num_blocks=40, clock=clock)
    requests = [request(f"r{index}", prompt(4, index), 3, arrival_s=0.1 * index) for index in range(3)]
    seen: dict[str, float] = {}

    def watch(outputs: list[RequestOutput]) -> None:
        for one in [*engine.scheduler.running, *engine.scheduler.waiting]:
            seen[one.id] = one.arrival_s

    replay(engine, requests, sleep=clock.sleep, on_step=watch)
    assert [seen[f"r{index}"] for index in range(3)] == pytest.approx([0.3, 0.4, 0.5])


def test_a_trace_with_a_bad_request_leaves_none_behind() -> None:
    engine = LLMEngine(MODEL, num_blocks=8, clock=Clock(each=0.01))
    good = request("a", prompt(4), 20, arrival_s=0.0)
    with pytest.raises(PromptError):
        replay(engine, [good, request("b", (99,), arrival_s=0.0)], sleep=lambda _: None)
    empty(engine)
    assert not engine.scheduler.more_to_come
