"""The story world: who and what there is, where it is, and the events that change that.

A `World` holds the present; every change is also returned as an `Event`. The list of events alone is
enough to answer every question (`replay` does so), which is how the tests check the answers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from data.story.english import article

# What an event tells: (kind, subject) is the fact's key, value its content.
KINDS = ("name", "colour", "number", "owner", "holder", "place")


@dataclass(frozen=True)
class Person:
    """Someone in a story. The properties are the words that sentence templates ask for."""

    first: str
    second: str
    female: bool

    def __str__(self) -> str:
        return self.first

    @property
    def full(self) -> str:
        return f"{self.first} {self.second}"

    @property
    def he(self) -> str:
        return "she" if self.female else "he"

    @property
    def him(self) -> str:
        return "her" if self.female else "him"

    @property
    def his(self) -> str:
        return "her" if self.female else "his"

    @property
    def child(self) -> str:
        return "girl" if self.female else "boy"


@dataclass(frozen=True)
class Thing:
    """One coloured thing, or a number of small ones: `detail` is the colour or the number word."""

    noun: str
    detail: str
    plural: bool

    @property
    def the(self) -> str:
        return f"the {self.noun}"

    @property
    def detailed(self) -> str:
        return f"{self.detail} {self.noun}"

    @property
    def a(self) -> str:
        return self.detailed if self.plural else f"{article(self.detail)} {self.detailed}"

    @property
    def it(self) -> str:
        return "them" if self.plural else "it"

    @property
    def was(self) -> str:
        return "were" if self.plural else "was"

    @property
    def is_(self) -> str:
        return "are" if self.plural else "is"

    @property
    def that(self) -> str:
        return "those" if self.plural else "that"


@dataclass(frozen=True)
class Event:
    """One thing that a sentence told: `kind` of `subject` is `value` from now on."""

    kind: str
    subject: str
    value: str


@dataclass
class World:
    """The present state: where people are, who holds what. Changes go through the methods."""

    place: dict[Person, str] = field(default_factory=dict)
    holder: dict[Thing, Person] = field(default_factory=dict)

    def name(self, person: Person) -> Event:
        return Event("name", person.first, person.second)

    def move(self, person: Person, place: str) -> Event:
        self.place[person] = place
        return Event("place", person.first, place)

    def own(self, person: Person, thing: Thing) -> list[Event]:
        """`thing` enters the story as `person`'s."""
        self.holder[thing] = person
        return [
            Event("number" if thing.plural else "colour", thing.noun, thing.detail),
            Event("owner", thing.noun, person.first),
            Event("holder", thing.noun, person.first),
        ]

    def give(self, thing: Thing, receiver: Person) -> Event:
        self.holder[thing] = receiver
        return Event("holder", thing.noun, receiver.first)

    def held_by(self, person: Person) -> list[Thing]:
        return [thing for thing, holder in self.holder.items() if holder == person]

    def together_with(self, person: Person) -> list[Person]:
        return [
            other for other, place in self.place.items() if other != person and place == self.place[person]
        ]


def replay(events: Iterable[Event]) -> dict[tuple[str, str], str]:
    """What holds after all `events`: {(kind, subject): value}, the latest telling winning."""
    return {(event.kind, event.subject): event.value for event in events}
