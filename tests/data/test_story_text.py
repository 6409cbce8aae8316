"""The simulator: grammar, pronouns, answers and distances, on documents of all lengths."""

from __future__ import annotations

import re
from random import Random

import pytest

from data.story import lexicon
from data.story.english import article, capitalise, grammar_slips, uncapitalise
from data.story.narrator import Narrator
from data.story.questions import GRADES, Document, make_document
from data.story.world import Event, Person, Thing, World, replay

LENGTHS = (36, 50, 64, 100, 128, 180, 256, 400, 470)
SEEDS = range(60)


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return [make_document(f"test {seed}", length) for seed in SEEDS for length in LENGTHS]


def _story_before(text: str, position: int) -> str:
    """The told text before `position`: without the lines of earlier questions and answers."""
    lines = text[:position].split("\n")
    return "\n".join(line for line in lines if not line.startswith(("Question:", "Answer:")))


def test_articles_and_capitals() -> None:
    assert [article(word) for word in ("red", "orange", "old", "hat")] == ["a", "an", "an", "a"]
    assert capitalise('"my name is Mia," she said.') == '"My name is Mia," she said.'
    assert uncapitalise("She ran.") == "she ran."
    assert capitalise("...") == "..."


@pytest.mark.parametrize(
    "wrong",
    [
        "She had a orange kite.",
        "He had an red hat.",
        "Mia  ran.",
        "The the kite flew.",
        "Mia ran. then Tom ran.",
        "She had a two shells.",
        "The shells was old.",
        "The kite were old.",
        'He said "hello.',
        "She had three kite.",
        "Mia ran , then sat.",
        "Well!. Yes.",
    ],
)
def test_the_grammar_checks_find_slips(wrong: str) -> None:
    assert grammar_slips(wrong)


def test_stories_have_no_mechanical_slip(documents: list[Document]) -> None:
    assert [slip for document in documents for slip in grammar_slips(document.text)] == []


def test_every_sentence_ends_and_no_slot_is_left(documents: list[Document]) -> None:
    for document in documents:
        assert not re.search(r"[{}<>]|None", document.text)
        for line in document.text.split("\n"):
            assert line.startswith("Question:") or re.search(r'[.!?]"?$', line), line


def test_sentences_agree_with_their_subject(documents: list[Document]) -> None:
    """Nobody is a girl here and a boy there, and titles fit the name's own list."""
    for document in documents:
        for child, first in re.findall(r"\b(girl|boy) (?:called|named) (\w+)", document.text):
            assert first in (lexicon.GIRLS if child == "girl" else lexicon.BOYS)


def test_a_pronoun_subject_means_the_last_person_named(documents: list[Document]) -> None:
    """Where a sentence begins with She or He, the sentence before in its paragraph names one such person."""
    checked = 0
    for document in documents:
        for line in document.text.split("\n"):
            told = re.split(r'(?<=[.!?])"? ', line)
            for before, sentence in zip(told, told[1:], strict=False):
                if not (found := re.match(r"(She|He) ", sentence)):
                    continue
                names = lexicon.GIRLS if found[1] == "She" else lexicon.BOYS
                people = {word for word in re.findall(r"\w+", before) if word in names}
                assert len(people) <= 1, (before, sentence)
                checked += 1
    assert checked > 300


def test_answers_follow_from_the_told_events_alone(documents: list[Document]) -> None:
    """An independent replay of what was told before a question gives its answer."""
    for document in documents:
        for recall in document.recalls:
            facts = replay(event for end, event in document.events if end <= recall.start)
            assert facts[recall.kind, recall.subject] == recall.answer
            assert document.text[recall.start : recall.end] == recall.answer


def test_answers_follow_from_the_words_of_the_story(documents: list[Document]) -> None:
    """Read with patterns of its own, the text names each fact as it is answered."""
    for document in documents:
        for recall in document.recalls:
            story = _story_before(document.text, recall.start)
            if recall.kind == "name":
                pattern = rf"\b{recall.subject} ({'|'.join(lexicon.SECOND_NAMES)})\b"
            elif recall.kind in ("colour", "number"):
                words = lexicon.COLOURS if recall.kind == "colour" else lexicon.NUMBERS
                pattern = rf"\b({'|'.join(words)}) {recall.subject}\b"
            else:
                continue
            assert set(re.findall(pattern, story)) == {recall.answer}


def test_the_latest_move_and_gift_in_the_words_is_the_answer(documents: list[Document]) -> None:
    """Last update: the paragraph up to where it was told last names the place, or the thing."""
    seen = dict.fromkeys(("holder", "place"), 0)
    for document in documents:
        for recall in document.recalls:
            if recall.kind not in seen:
                continue
            told = document.text[: recall.told].rsplit("\n", 1)[-1]
            # the thing's holder may stand a sentence back, where a pronoun speaks of them
            assert recall.answer in told if recall.kind == "place" else recall.subject in told
            seen[recall.kind] += recall.tellings > 1
    assert min(seen.values()) > 50


def test_told_is_where_the_fact_was_told_last(documents: list[Document]) -> None:
    for document in documents:
        for recall in document.recalls:
            assert 0 < recall.told < recall.start
            if GRADES[recall.kind] == "update" or recall.kind == "owner":
                ends = [
                    end for end, e in document.events if (e.kind, e.subject) == (recall.kind, recall.subject)
                ]
                assert recall.told == max(end for end in ends if end < recall.start)
            else:
                assert document.text[: recall.told].endswith(recall.answer)
                between = _story_before(document.text, recall.start)[len(document.text[: recall.told]) :]
                assert f"{recall.answer} {recall.subject}" not in between


def test_the_same_seed_tells_the_same_story() -> None:
    assert make_document("a", 200) == make_document("a", 200)
    assert make_document("a", 200).text != make_document("b", 200).text


def test_openings_grades_and_answers_are_spread(documents: list[Document]) -> None:
    once = sum(document.text.startswith("Once upon a time") for document in documents)
    assert 0.4 < once / len(documents) < 0.7
    asked = {recall.kind for document in documents for recall in document.recalls}
    assert asked == set(GRADES)
    colours = [r.answer for d in documents for r in d.recalls if r.kind == "colour"]
    assert max(colours.count(colour) for colour in set(colours)) < 0.2 * len(colours)


def test_no_template_returns_before_all_were_used() -> None:
    narrator = Narrator(Random(0))
    templates = ("a", "b", "c", "d")
    assert {narrator.pick(templates) for _ in templates} == set(templates)


def test_the_world_keeps_state_and_tells_events() -> None:
    mia, tom = Person("Mia", "Talo", True), Person("Tom", "Brin", False)
    kite, world = Thing("kite", "orange", False), World()
    events = [world.name(mia), *world.own(mia, kite), world.move(mia, "mill"), world.move(tom, "mill")]
    assert world.together_with(mia) == [tom]
    assert world.held_by(mia) == [kite]
    events.append(world.give(kite, tom))
    assert world.held_by(tom) == [kite]
    facts = replay(events)
    assert facts["holder", "kite"] == "Tom"
    assert facts["owner", "kite"] == "Mia"
    assert Event("colour", "kite", "orange") in events
    assert kite.a == "an orange kite"
    assert Thing("shells", "eight", True).a == "eight shells"
