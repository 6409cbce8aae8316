"""Exercises and hunts of lesson 8: golden values, agreement with the engine, mistakes, planted bugs."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from labcore.lab import exercises, hunts
from labcore.lab.exercises import TODO, lesson08
from labcore.lab.exercises.desk import source_of
from labcore.lab.serving_paper import chunk_rows, scheduled
from labcore.perf.predict import latency
from labcore.serving import Static
from labcore.serving.blocks import BlockManager
from labcore.serving.metrics import RequestRecord, Slo, summarize
from labcore.serving.scheduler import Scheduler
from tests.lab.tasks import knows_its_mistakes, told, with_its_bug

TASKS = exercises.of_lesson("08")
HUNTS = hunts.of_lesson("08")


def test_the_lesson_is_registered() -> None:
    assert [task.id for task in TASKS] == [f"08.{n}" for n in range(1, 6)]
    assert [bug.id for bug in HUNTS] == ["08.A", "08.B"]
    assert sum(task.minutes for task in [*TASKS, *HUNTS]) <= 40


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.id)
@pytest.mark.parametrize("seed", range(5))
def test_every_solution_passes_and_every_mistake_is_named(
    task: exercises.Exercise, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    knows_its_mistakes(task, seed, monkeypatch)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.id)
def test_unfinished_answers_are_not_attempted(task: exercises.Exercise) -> None:
    assert not task.check(TODO).attempted
    assert not task.check(lambda *_: TODO).attempted
    assert "asks for a function" in task.check(62.5).message


def test_golden_values() -> None:
    assert lesson08.utilisation([2, 6, 3, 4]) == 0.625
    assert lesson08.in_flight(4, 0.2, 0.030, 201) == pytest.approx(24.8)
    assert lesson08.chunks(4096, 512, 8) == 9
    assert lesson08.victims([4, 6, 2, 3], 1, 5) == [3, 2]
    assert lesson08.victims([4, 6, 2, 3], 5, 5) == []
    assert lesson08.goodput([(0.2, 0.03), (0.9, 0.03), (0.3, 0.08), (0.5, 0.05)], 0.5, 0.05, 2.0) == 1.0


@pytest.mark.parametrize("lengths", [[2, 6, 3, 4], [5], [1, 9, 9], [3, 3, 3, 3]])
def test_utilisation_agrees_with_the_scheduler(lengths: list[int]) -> None:
    steps = scheduled([(1, length) for length in lengths], Static(len(lengths)))
    computed, useful = sum(len(step.rows) for step in steps), sum(step.drawn for step in steps)
    assert lesson08.utilisation(lengths) == useful / computed


@pytest.mark.parametrize(("prompt", "budget", "decodes"), [(4096, 512, 8), (1008, 512, 8), (50, 64, 3)])
def test_chunks_agree_with_the_scheduler(prompt: int, budget: int, decodes: int) -> None:
    assert lesson08.chunks(prompt, budget, decodes) == len(chunk_rows(prompt, budget, decodes))


def test_latency_and_goodput_agree_with_labcore() -> None:
    assert lesson08.in_flight(3, 0.4, 0.05, 17) == pytest.approx(3 * latency(0.4, 0.05, 17))
    stream = random.Random(0)
    pairs = [(stream.uniform(0, 1), stream.uniform(0, 0.1)) for _ in range(30)]
    records = [
        RequestRecord(str(i), 0.0, first, first + 10 * each, 4, 11, (first, first + 10 * each))
        for i, (first, each) in enumerate(pairs)
    ]
    found = summarize(records, Slo(0.5, 0.05))
    assert found.goodput == pytest.approx(lesson08.goodput(pairs, 0.5, 0.05, found.duration_s))


def test_an_answer_that_changes_its_input_is_judged_by_what_it_returns() -> None:
    def greedy(held: list[int], free: int, needed: int) -> list[int]:
        chosen = []
        while free < needed:
            free += held.pop()
            chosen.append(len(held))
        return chosen

    assert exercises.find("08.4").check(greedy).ok


@pytest.mark.parametrize("bug", HUNTS, ids=lambda bug: bug.id)
def test_hunts_pass_without_their_bug_and_fail_with_it(bug: hunts.Hunt) -> None:
    before = Scheduler._continue_running, BlockManager.adopt
    assert bug.check(bug.original).ok
    assert not bug.check(with_its_bug(bug)).ok
    home = hunts.registry.at_home(with_its_bug(bug), bug.target)
    assert not bug.check(home).ok, "as a notebook runs it"
    assert bug.check(bug.original).ok, "a check leaves nothing behind"
    assert (Scheduler._continue_running, BlockManager.adopt) == before


def test_hunts_tell_what_is_wrong() -> None:
    starving, lost = (told(bug.id, with_its_bug(bug)) for bug in HUNTS)
    assert starving == (
        "2 of 4 loads are right. A prompt of 40 tokens beside 0 who decode, 16 tokens a step: 200 steps "
        "later 16 of its 40 tokens are computed, and no step goes on with it."
    )
    assert lost.startswith(
        "3 of 6 prompts are right. A prompt of 8 tokens in blocks of 4, asked for a second time"
    )
    assert lost.endswith("Of its 8 tokens 8 were found, so 0 were left to compute.")


@pytest.mark.parametrize(
    ("suspect", "words"),
    [
        (lambda self, plan, budget: budget, "0 of 4 loads are right."),
        (lambda *_: 1 / 0, "ends in ZeroDivisionError: division by zero."),
    ],
)
def test_schedulers_that_do_nothing_or_fail_are_judged(suspect: Callable[..., Any], words: str) -> None:
    assert words in told("08.A", suspect)


def test_a_scheduler_that_lets_the_prompt_go_first_is_told_so() -> None:
    original = hunts.find("08.A").original
    names = dict(original.__globals__)
    text = source_of(original)
    turned = text.replace("not one.decoding, one.turn", "one.decoding, one.turn")
    assert turned != text
    exec("from __future__ import annotations\n" + turned, names)
    message = told("08.A", names["_continue_running"])
    assert "takes 3 steps; " not in message
    assert "of them get their token; they go first." in message


@pytest.mark.parametrize(
    ("suspect", "words"),
    [
        (lambda self, sequence: 0, "0 tokens are found, and it should be 4."),
        (lambda *_: 1 / 0, "That was the first time, when nothing could be found."),
    ],
)
def test_adopters_that_find_nothing_or_fail_are_judged(suspect: Callable[..., Any], words: str) -> None:
    assert words in told("08.B", suspect)


def test_an_adopter_that_finds_too_much_too_early_ends() -> None:
    def everything(self: BlockManager, sequence: Any) -> int:
        sequence.blocks = self.pool.allocate(self.pool.blocks_for(len(sequence.tokens)))
        sequence.computed = len(sequence.tokens)
        return int(sequence.computed)

    assert told("08.B", everything).startswith("0 of 6 prompts are right.")
