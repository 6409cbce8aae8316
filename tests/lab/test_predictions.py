"""Predictions lock, survive a session, and are scored against what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from labcore import lab
from labcore.errors import LessonError
from labcore.lab.predictions import verdict
from labcore.lab.results import Results
from labcore.lab.session import Session


def test_an_unlocked_number_is_scored_as_the_default(session: Session) -> None:
    lab.predict("01.1", "How fast?", unit="tok/s", low=1, high=1e6, default=40)
    sentence = lab.score("01.1", measured=812.0)
    assert (
        sentence == "You said 40 tok/s (the default; you locked nothing), measured 812 tok/s, off by 20.3×."
    )


def test_the_factor_is_the_same_in_both_directions(session: Session) -> None:
    asked = lab.predict("01.1", "How fast?", unit="ms", default=8)
    assert verdict(asked, 2.0, "ms")[1] == verdict(asked, 32.0, "ms")[1] == 4.0


def test_options_name_the_nearest_by_ratio(session: Session) -> None:
    asked = lab.predict("02.1", "How long?", options=["1×", "4×", "16×"], default="1×")
    sentence, factor = verdict(asked, 7.0, "×")
    assert "nearest to 4×" in sentence
    assert factor == 7.0
    asked.lock("4×")
    assert verdict(asked, 7.0, "×")[0] == "You said 4× (locked), measured 7×: the nearest of the answers."


def test_options_may_be_words_with_numbers(session: Session) -> None:
    lab.predict("02.1", "How long?", options={"as long": 1.0, "twice": 2.0}, default="as long")
    assert "nearest to twice, off by 2×" in lab.score("02.1", measured=2.0)


def test_a_word_is_right_or_wrong(session: Session) -> None:
    asked = lab.predict("02.1", "Which?", options=["prefill", "decode"], default="decode")
    assert verdict(asked, "decode", "")[0].endswith("it is decode: you had it.")
    assert verdict(asked, "prefill", "") == (
        "You said decode (the default; you locked nothing); it is prefill: not what you said.",
        None,
    )


def test_a_locked_answer_is_kept_and_recalled(session: Session, results_folder: Path) -> None:
    lab.predict("01.1", "How fast?", unit="tok/s", default=40).lock(700)
    assert json.loads((results_folder / "lesson-01.json").read_text())["predictions"]["01.1"]["value"] == 700
    session.results = Results.open("01")
    again = lab.predict("01.1", "How fast?", unit="tok/s", default=40)
    assert (again.value, again.locked) == (700.0, True)
    lab.score("01.1", measured=812.0)
    recalled = lab.recall_prediction("01.1")
    assert recalled is not None
    assert (recalled["value"], recalled["locked"], recalled["measured"]) == (700.0, True, 812.0)
    assert lab.recall_prediction("05.9") is None


def test_an_answer_to_an_older_question_is_not_taken_over(session: Session) -> None:
    lab.predict("01.1", "How fast?", unit="tok/s", default=40).lock(700)
    assert not lab.predict("01.1", "How slow?", unit="ms", default=4).locked


@pytest.mark.parametrize("value", [-1.0, 1e9, float("nan")])
def test_an_impossible_number_is_refused(session: Session, value: float) -> None:
    asked = lab.predict("01.1", "How fast?", unit="tok/s", low=1, high=1e6, default=40)
    with pytest.raises(LessonError, match="outside of what 01.1 can be"):
        asked.lock(value)
    assert not asked.locked


def test_an_option_that_is_none_is_refused(session: Session) -> None:
    with pytest.raises(LessonError, match="not among the answers"):
        lab.predict("01.1", "Which?", options=["a", "b"], default="c")


def test_scoring_what_was_not_asked_says_which_cell_to_run(session: Session) -> None:
    with pytest.raises(LessonError, match="was not asked for yet"):
        lab.score("01.9", measured=1.0)
