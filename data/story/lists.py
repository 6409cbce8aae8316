"""Lists: the shortest texts that teach to look something up.

A story tells a fact once in twenty tokens and asks for it once; a list tells one in three tokens and repeats
it in two. From them the model learns to look back for what followed a word; in stories it then uses that.
"""

from __future__ import annotations

from random import Random

from data.story import lexicon
from data.story.narrator import Sentence, count_tokens
from data.story.questions import Document, Writer
from data.story.stories import make_people, make_things
from data.story.world import Event, Person, Thing

_CALLS = (
    "The names were called: {}.",
    "Then they were counted: {}.",
    "In came {}.",
    "Out went {}.",
    "Good night, {}.",
)


def join(parts: list[str]) -> str:
    """["a", "b", "c"] -> "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def make_list(seed: int | str, length: int) -> Document:
    """A list of people, or of things and whose they are, told over again in another order, with questions."""
    rng = Random(f"list {seed} {length}")
    writer = Writer(rng)
    tell = _people if rng.random() < 0.5 else _things
    tell(rng, writer, length)
    while count_tokens(writer.text) < length - 16 and writer.question():
        pass
    return writer.document()


def _people(rng: Random, writer: Writer, length: int) -> None:
    people = make_people(rng, min(rng.randint(2, 7), length // 9))
    place = rng.choice(list(lexicon.PLACES))
    events = [Event("name", person.first, person.second) for person in people]
    events += [Event("place", person.first, place) for person in people]
    names = join([person.full for person in people])
    writer.sentence(Sentence(f"At the {place} there were {names}.", tuple(events), True), True)
    for call in rng.sample(_CALLS, rng.randint(1, 4)):
        if count_tokens(writer.text) > length - 4 * len(people):
            break
        again = rng.sample(people, rng.randint(1, len(people)))
        writer.retell(call, [(person.full, person.second) for person in again])


def _things(rng: Random, writer: Writer, length: int) -> None:
    count = min(rng.randint(2, 6), length // 12)
    things = make_things(rng, count)
    owners = make_people(rng, count)
    events = [event for thing, owner in zip(things, owners, strict=True) for event in _owning(thing, owner)]
    told = join([f"{owner} had {thing.a}" for thing, owner in zip(things, owners, strict=True)])
    writer.sentence(Sentence(f"{told}.", tuple(events), True), True)
    for _ in range(rng.randint(0, 2)):
        pairs = rng.sample(list(zip(things, owners, strict=True)), rng.randint(1, count))
        if rng.random() < 0.5:
            again = [(f"the {t.noun} {t.was} {t.detail}", t.detail) for t, _ in pairs]
        else:
            again = [(f"the {t.noun} came from {p}", p.first) for t, p in pairs]
        writer.retell("It is true: {}.", again)


def _owning(thing: Thing, owner: Person) -> list[Event]:
    return [
        Event("number" if thing.plural else "colour", thing.noun, thing.detail),
        Event("owner", thing.noun, owner.first),
        Event("holder", thing.noun, owner.first),
    ]
