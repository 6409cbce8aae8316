"""Questions that a story's own facts answer, and the documents that hold both.

Three grades, by what it takes to answer. induction: the second part of a name (look up what followed the
first part). binding: a thing's colour, number or first owner (look up what was said of *this* thing).
update: who has it now, where is she now (look up the latest of several tellings).
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from data.story.narrator import Sentence
from data.story.stories import tell
from data.story.world import Event, replay

GRADES = {
    "name": "induction",
    "colour": "binding",
    "number": "binding",
    "owner": "binding",
    "holder": "update",
    "place": "update",
}
_TEXTS = {
    "name": ("What is {subject}'s full name?", "{subject} {value}"),
    "colour": ("What colour is the {subject}?", "{value}"),
    "number": ("How many {subject} are there?", "{value}"),
    "owner": ("Who had the {subject} first?", "{value}"),
    "holder": ("Who has the {subject} now?", "{value}"),
    "place": ("Where is {subject} now?", "at the {value}"),
}
_QUESTION_TOKENS = 18


@dataclass(frozen=True)
class Recall:
    """One answer in a document.

    start, end: the answer word's characters in the text. told: the end of the last place before `start`
    that told this fact (the word itself for names, colours and numbers, else the sentence).
    tellings: how many events so far set this fact (an update has at least two).
    """

    kind: str
    subject: str
    answer: str
    start: int
    end: int
    told: int
    tellings: int

    @property
    def grade(self) -> str:
        return GRADES[self.kind]


@dataclass(frozen=True)
class Document:
    """A text with its questions.

    events: (end of the telling sentence in the text, event). retold: (start, end) of words that repeat one.
    """

    text: str
    recalls: tuple[Recall, ...]
    events: tuple[tuple[int, Event], ...]
    retold: tuple[tuple[int, int], ...] = ()


class Writer:
    """Puts sentences and questions into one text and keeps the positions."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.text = ""
        self.recalls: list[Recall] = []
        self.events: list[tuple[int, Event]] = []
        self.retold: list[tuple[int, int]] = []
        self._asked: set[tuple[str, str, str]] = set()

    def sentence(self, sentence: Sentence, opens: bool) -> None:
        gap = "" if not self.text else "\n" if opens else " "
        self.text += gap + sentence.text
        self.events.extend((len(self.text), event) for event in sentence.events)

    def retell(self, frame: str, parts: list[tuple[str, str]]) -> None:
        """A sentence that repeats facts: `frame` around a list of (phrase, its last word: the fact)."""
        before, after = frame.split("{}")
        self.text += f" {before}"
        for number, (phrase, word) in enumerate(parts):
            self.text += ("" if not number else " and " if number == len(parts) - 1 else ", ") + phrase
            self.retold.append((len(self.text) - len(word), len(self.text)))
        self.text += after

    def document(self) -> Document:
        """What was written."""
        return Document(self.text, tuple(self.recalls), tuple(self.events), tuple(self.retold))

    def question(self) -> bool:
        """Ask something not asked before. False when nothing is left to ask."""
        facts = replay(event for _, event in self.events)
        open_ = [(kind, subject, value) for (kind, subject), value in facts.items()]
        open_ = [fact for fact in open_ if fact not in self._asked]
        if not open_:
            return False
        kind = self.rng.choice(sorted({kind for kind, _, _ in open_}))
        fact = self.rng.choice([fact for fact in open_ if fact[0] == kind])
        self._asked.add(fact)
        self._write(*fact)
        return True

    def _write(self, kind: str, subject: str, value: str) -> None:
        question, answer = (text.format(subject=subject, value=value) for text in _TEXTS[kind])
        self.text += f"\nQuestion: {question}\nAnswer: {answer}"
        end = len(self.text)
        start = end - len(value)
        tellings = sum((event.kind, event.subject) == (kind, subject) for _, event in self.events)
        self.recalls.append(
            Recall(kind, subject, value, start, end, self._told(kind, subject, value, start), tellings)
        )
        self.text += "."

    def _told(self, kind: str, subject: str, value: str, before: int) -> int:
        """The end of the last telling of this fact before character `before`."""
        phrases = {
            "name": f"{subject} {value}",
            "colour": f"{value} {subject}",
            "number": f"{value} {subject}",
        }
        if kind in phrases:
            phrase = phrases[kind]
            return self.text.rindex(phrase, 0, before) + (len(phrase) if kind == "name" else len(value))
        return max(end for end, event in self.events if (event.kind, event.subject) == (kind, subject))


def make_document(
    seed: int | str, length: int, *, questions: int | None = None, dense: bool = False
) -> Document:
    """A story of about `length` tokens with its questions; a pure function of its arguments.

    questions: how many to ask at most (default: one or two in the shortest stories, up to eight in long
    ones; one document in eight asks none). Longer stories sometimes stop half way for a question.
    dense: much is told and asked in few words, so that guessing among the story's own names seldom works.
    """
    rng = Random(f"story {seed} {length}")
    if questions is None:
        most = max(1, min(8, length // (30 if dense else 40)))
        questions = 0 if rng.random() < 0.12 and length > 64 else rng.randint((most + 1) // 2, most)
        questions = most if dense else questions
    told = tell(rng, max(18, length - questions * _QUESTION_TOKENS), dense=dense)
    writer = Writer(rng)
    pause = rng.randrange(len(told)) if length >= 160 and questions > 1 and rng.random() < 0.3 else -1
    paused = False
    for number, sentence in enumerate(told):
        if sentence.opens and 0 <= pause < number and not paused:
            paused = True
            questions -= writer.question()
        writer.sentence(sentence, sentence.opens)
    for _ in range(questions):
        if not writer.question():
            break
    return writer.document()
