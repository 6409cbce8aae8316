"""Exercises and hunts of lessons 5 and 6: golden values, each mistake by its own sentence, planted bugs."""

from __future__ import annotations

from typing import Any

import pytest

from labcore.catalog import architecture, gpu
from labcore.lab import exercises, hunts
from labcore.lab.exercises import lesson05, lesson06
from labcore.perf import timing
from labcore.perf.costs import OpCost, elementwise_costs, linear_costs
from tests.lab.tasks import knows_its_mistakes, told, with_its_bug

LESSONS = ("05", "06")
TASKS = [task for lesson in LESSONS for task in exercises.of_lesson(lesson)]
HUNTS = [bug for lesson in LESSONS for bug in hunts.of_lesson(lesson)]
A100 = gpu("a100-80gb-sxm")


def test_both_lessons_are_registered() -> None:
    assert [task.id for task in TASKS] == [f"{lesson}.{n}" for lesson in LESSONS for n in range(1, 6)]
    assert [bug.id for bug in HUNTS] == ["05.A", "05.B", "06.A", "06.B"]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.id)
@pytest.mark.parametrize("seed", range(5))
def test_every_solution_passes_and_every_mistake_is_named(
    task: exercises.Exercise, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    knows_its_mistakes(task, seed, monkeypatch)


def test_golden_values_of_lesson_5() -> None:
    assert lesson05.least_time(1e12, 1e9, 125e12, 600e9) == pytest.approx(8e-3)
    assert lesson05.least_time(1e9, 14e9, 312e12, 2039e9) == pytest.approx(6.866e-3, rel=1e-3)
    assert lesson05.mbu(14e9, 14e-3, 2e12) == pytest.approx(0.5)
    assert lesson05.traffic(10**6, 3, 2, False) == 12e6
    assert lesson05.traffic(10**6, 3, 2, True) == 4e6
    assert lesson05.regime(1, 2, 4, 3) == "communication"
    assert lesson05.regime(1, 2, 3, 4) == "overhead"
    assert [lesson05.ring_bytes(1e6, ranks) for ranks in (1, 2, 4)] == [0, 1e6, 1.5e6]


def test_golden_values_of_lesson_6() -> None:
    layers = [lesson06.intensity(rows, 4096, 4096, 2) for rows in (8, 128, 512)]
    assert layers == pytest.approx([8.0, 120.5, 409.6], abs=0.05)
    turns = [lesson06.critical_batch(312e12, 2039e9, width) for width in (2, 1, 0.5)]
    assert turns == pytest.approx([153, 76.5, 38.25], abs=0.05)
    llama = (1024, 524_288, 13.48e9, 6.74e9, 312e12, 2039e9)
    steps = [lesson06.step_time(batch, *llama) * 1e3 for batch in (1, 8, 32)]
    assert steps == pytest.approx([6.87, 8.72, 15.04], abs=0.01)
    assert lesson06.largest_batch(80e9, 13.48e9, 524_288, 1024) == 123
    assert lesson06.largest_batch(10e9, 13.48e9, 524_288, 1024) == 0
    assert lesson06.usd_per_million(1.0, 1, 1 / 43.6) == pytest.approx(6.37, abs=0.005)


def test_solutions_agree_with_the_cost_model() -> None:
    for rows in (1, 8, 300):
        layer = linear_costs(4096, 11_008, rows, "float16")
        assert lesson06.intensity(rows, 4096, 11_008, 2) == pytest.approx(layer.intensity)
    for fused in (False, True):
        chain = elementwise_costs(1000, 5, fused=fused, dtype="float32")
        assert lesson05.traffic(1000, 5, 4, fused) == chain.bytes
    peak = A100.flops["float16"]
    assert lesson06.critical_batch(peak, A100.bandwidth, 2) == pytest.approx(peak / A100.bandwidth)


@pytest.mark.parametrize("bug", HUNTS, ids=lambda bug: bug.id)
def test_hunts_pass_without_their_bug_and_fail_with_it(bug: hunts.Hunt) -> None:
    assert bug.check(bug.original).ok
    assert not bug.check(with_its_bug(bug)).ok
    assert bug.check(bug.original).ok, "a check leaves nothing behind"


def test_hunts_tell_what_is_wrong() -> None:
    said = {bug.id: told(bug.id, with_its_bug(bug)) for bug in HUNTS}
    assert "5 of 5 runs were said to take 0.1 ms; the device worked 10 ms on each." in said["05.A"]
    assert "a sample of 1 s was kept; warm, every call takes 0.01 s." in said["05.B"]
    assert "1 of 5 models" in said["06.A"]
    assert "llama-3-8b (GQA) keeps 131,072 bytes" in said["06.A"]
    assert "524,288, 4 times as many" in said["06.A"]
    assert "128 rows is 120.5 FLOP/byte; this says 124.1." in said["06.B"]


def test_the_stopwatch_hunt_restores_what_it_replaced() -> None:
    kept = timing.synchronize

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a suspect that fails")

    suspect = hunts.registry.at_home(broken, "labcore.perf.timing:measure")
    with pytest.raises(RuntimeError, match="a suspect that fails"):
        hunts.find("05.A").check(suspect)
    assert suspect.__globals__["synchronize"] is kept
    assert hunts.find("05.A").check(timing.measure).ok
    assert timing.synchronize is kept


def test_the_wide_head_alone_gives_a_forgotten_output_away() -> None:
    """A suspect that is right for square layers only."""

    def square_only(inputs: int, outputs: int, rows: int, dtype: object = "float16") -> OpCost:
        return OpCost("linear", 2 * rows * inputs * outputs, 2 * inputs * outputs, 0, 4 * rows * inputs)

    assert "4096 × 128000" in told("06.B", square_only)


def test_the_cache_hunt_knows_multi_head_models_are_no_witness() -> None:
    """Where every query head has keys of its own the bug does not show."""
    suspect = with_its_bug(hunts.find("06.A"))
    for name, right in (("llama-2-7b", True), ("mistral-7b", False)):
        config = architecture(name)
        assert (suspect(config) == hunts.find("06.A").original(config)) is right
