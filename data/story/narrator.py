"""The narrator: events in, sentences out, in paragraphs; never the same template twice in a row.

A told sentence keeps the events it told, so that questions (`questions.py`) know what was said and where.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from random import Random
from typing import Any

from data.story import sentences
from data.story.english import capitalise, uncapitalise
from data.story.world import Event, Person, Thing

_AFTER_STOP = re.compile(r"(?<=[.!?] )[a-z]")
_TOKENS = re.compile(r"\w+|[^\w\s]|\n")


@dataclass(frozen=True)
class Sentence:
    """What was said, and the events it told. `opens`: it begins a paragraph."""

    text: str
    events: tuple[Event, ...]
    opens: bool


class _Subject:
    """A person as a sentence's subject: stands as "Mia" or "she", every other word as the person's own."""

    def __init__(self, person: Person, pronoun: bool) -> None:
        self._person, self._pronoun = person, pronoun

    def __str__(self) -> str:
        return self._person.he if self._pronoun else self._person.first

    def __getattr__(self, name: str) -> Any:
        return getattr(self._person, name)


def count_tokens(text: str) -> int:
    """About how many tokens `text` has: a word or a mark is one, and about one in six is two."""
    return round(1.16 * len(_TOKENS.findall(text)))


@dataclass
class Narrator:
    """Turns events into sentences. No template is used twice in a story before all were used."""

    rng: Random
    told: list[Sentence] = field(default_factory=list)
    length: int = 0
    _used: dict[tuple[str, ...], list[str]] = field(default_factory=dict)
    _clear: Person | None = None  # whom "she" or "he" would mean now, without doubt
    _opens: bool = True

    def paragraph(self) -> None:
        """The next sentence begins a paragraph."""
        self._opens, self._clear = True, None

    def pick(self, templates: tuple[str, ...]) -> str:
        """One of `templates`, fresh ones first."""
        fresh = self._used.get(templates) or []
        if not fresh:
            fresh = self.rng.sample(templates, len(templates))
        self._used[templates] = fresh
        return fresh.pop()

    def say(
        self,
        templates: tuple[str, ...],
        *events: Event,
        a: Person | None = None,
        b: Person | None = None,
        t: Thing | None = None,
        p: str = "",
    ) -> None:
        """Tell `events` in one of `templates`, with subject a, other person b, thing t and place p."""
        subject = _Subject(a, a == self._clear and self.rng.random() < 0.6) if a else None
        text = self.pick(templates).format(
            A=subject,
            B=b,
            t=t,
            p=f"the {p}",
            mood=self.rng.choice(sentences.MOODS),
            weather=self.rng.choice(sentences.WEATHERS),
        )
        text = capitalise(text)
        if templates in (
            sentences.MOVES,
            sentences.MOVES_BOTH,
            sentences.GIVES,
            sentences.FEELINGS,
            sentences.SHOWS,
        ):
            text = self._connect(text, a)
        text = _AFTER_STOP.sub(lambda found: found.group().upper(), text)
        self._append(text, events)
        alone = b is None or (a is not None and a.female != b.female)
        self._clear = a if alone else None

    def remark(self, text: str) -> None:
        """A sentence that tells nothing of the plot. A pronoun stays clear only after a thing's."""
        self._append(text, ())
        if not text.startswith("The "):
            self._clear = None

    def hear(
        self, templates: tuple[str, ...], speaker: Person, listener: Person, t: Thing | None = None
    ) -> None:
        """Speech by `speaker` (B of the templates) to `listener` (A); names only, no pronouns."""
        text = capitalise(self.pick(templates).format(A=listener, B=speaker, t=t))
        self._append(text, ())
        self._clear = speaker if speaker.female != listener.female else None

    def _connect(self, text: str, a: Person | None) -> str:
        """A paragraph begins with a connective rather than with a name; elsewhere one sentence in eight."""
        if a is None or not text.startswith((a.first, f"{a.he.capitalize()} ")):
            return text
        if self._opens or self.rng.random() < 0.12:
            body = text if text.startswith(a.first) else uncapitalise(text)
            return f"{self.pick(sentences.CONNECTIVES)}{', ' if self.rng.random() < 0.5 else ' '}{body}"
        return text

    def _append(self, text: str, events: tuple[Event, ...]) -> None:
        self.told.append(Sentence(text, events, self._opens))
        self.length += count_tokens(text) + self._opens
        self._opens = False
