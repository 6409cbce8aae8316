"""Teaching notes fit the lessons they are about, and the guides beside the notebooks fit both."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from labcore.cli import app
from labcore.errors import LessonError
from labcore.lab import exercises, runner
from labcore.lab.course import guides, outline, questions, teaching
from labcore.lab.runner import Lesson

each_lesson = pytest.mark.parametrize("lesson", runner.lessons(), ids=lambda lesson: lesson.name)
_NUMBER = re.compile(r"\d+(\.\d+)?")


@each_lesson
def test_every_prediction_has_its_notes_and_no_other(lesson: Lesson) -> None:
    notes = teaching.of_lesson(lesson.number)
    assert list(notes.predictions) == list(outline.outline(lesson).ids("predictions"))
    assert all(len(expected.wrong) >= 2 and expected.right for expected in notes.predictions.values())


@each_lesson
def test_wrong_answers_are_answers_that_the_notebook_takes(lesson: Lesson) -> None:
    asked = questions.of_notebook(lesson.path)
    for id, expected in teaching.of_lesson(lesson.number).predictions.items():
        question = asked[id]
        answers = [wrong.answer for wrong in expected.wrong]
        assert len(set(answers)) == len(answers)
        if question.options:
            assert set(answers) < set(question.options), id
        else:
            assert all(_NUMBER.fullmatch(answer) for answer in answers), id
            low, high = question.low or 0.0, question.high or float("inf")
            assert all(low <= float(answer) <= high for answer in answers), id


@each_lesson
def test_plans_skip_what_there_is_and_keep_their_time(lesson: Lesson) -> None:
    known, notes = outline.outline(lesson), teaching.of_lesson(lesson.number)
    paces = guides.static_pace(lesson)
    assert [plan.minutes for plan in notes.plans] == [40, 25, 15]
    for plan in notes.plans:
        parts = [part for part in known.parts if part.number in plan.parts]
        assert [part.number for part in parts] == list(plan.parts)
        there = {id for part in parts for id in (*part.exercises, *part.hunts)}
        assert set(plan.skip) <= there
        assert guides.planned_minutes(plan, known, paces) <= plan.minutes + 1.5


@each_lesson
def test_every_part_is_discussed_and_its_running_known(lesson: Lesson) -> None:
    notes = teaching.of_lesson(lesson.number)
    parts = [part.number for part in outline.outline(lesson).parts]
    assert sorted({talk.part for talk in notes.discussions}) == parts
    assert list(notes.running) == parts
    assert len(notes.discussions) >= 3
    assert len(notes.troubles) >= 3
    assert len(notes.projector) >= 3


def test_ids_in_the_notes_exist() -> None:
    known = {
        id
        for one in outline.course()
        for kind in ("predictions", "exercises", "hunts")
        for id in one.ids(kind)
    }
    for path in Path(teaching.__file__).parent.glob("lesson*.toml"):
        assert set(re.findall(r"\b0\d\.[\dA-Z]\b", path.read_text(encoding="utf-8"))) <= known


@each_lesson
def test_guide_agrees_with_its_sources(lesson: Lesson) -> None:
    written = (guides.folder() / f"{lesson.name}.md").read_text(encoding="utf-8")
    assert written == guides.markdown(lesson), "run `labcore lessons guides`"


@each_lesson
def test_guide_names_everything_that_is_asked(lesson: Lesson) -> None:
    text, known = guides.markdown(lesson), outline.outline(lesson)
    for part in known.parts:
        assert f"## Part {part.number} · {part.title} ({part.minutes} min)" in text
    for id in known.ids("predictions"):
        assert f"### Prediction {id}" in text
    for id in known.ids("exercises"):
        task = exercises.find(id)
        assert (
            f"* **{id}** {task.title} · {task.badge}{' · besides' if task.importance < 3 else ''}\n" in text
        )
    assert all(f"* **Hunt {id}**" in text for id in known.ids("hunts"))


def test_question_is_read_with_its_options_limits_and_what_it_puts_in() -> None:
    (first,) = runner.find(["01"])
    (second,) = runner.find(["02"])
    asked = questions.of_notebook(first.path) | questions.of_notebook(second.path)
    assert asked["01.2"].text == "The prefill of … tokens takes how many times the time of a decode step?"
    assert asked["02.1"].options == ("15", "16", "17", "32")
    assert (asked["02.3"].low, asked["02.3"].high, asked["02.3"].unit) == (0.1, 10_000, "×")


def test_notes_that_are_missing_broken_or_incomplete_are_named(tmp_path: Path) -> None:
    with pytest.raises(LessonError, match="There is no .*lesson09.toml"):
        teaching.of_lesson("09", tmp_path)
    (tmp_path / "lesson09.toml").write_text("a = [", encoding="utf-8")
    with pytest.raises(LessonError, match="is no TOML"):
        teaching.of_lesson("09", tmp_path)
    shutil.copy(Path(teaching.__file__).with_name("lesson01.toml"), tmp_path / "lesson09.toml")
    text = (tmp_path / "lesson09.toml").read_text(encoding="utf-8")
    (tmp_path / "lesson09.toml").write_text(text.replace("reveals = ", "shows = "), encoding="utf-8")
    with pytest.raises(LessonError, match="misses something or has too much"):
        teaching.of_lesson("09", tmp_path)


def test_command_writes_the_guides_that_are_asked_for(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["lessons", "guides", "2", "--out", str(tmp_path / "new")])
    assert result.exit_code == 0, result.output
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["02_two_steps.md"]
