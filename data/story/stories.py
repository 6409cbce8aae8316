"""Tell stories: a world changes, and a narrator says so.

Everything here is a pure function of the random generator it is given.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from data.story import lexicon, sentences
from data.story.narrator import Narrator, Sentence
from data.story.world import Person, Thing, World


@dataclass
class Story:
    """A story being told: the world, its people and things, and the narrator."""

    rng: Random
    world: World
    narrator: Narrator
    waiting: list[Person]
    things: list[Thing]
    places: list[str]
    hero: Person
    dense: bool
    cast: list[Person] = field(default_factory=list)


def make_people(rng: Random, count: int) -> list[Person]:
    """`count` people no two of whom share a first or a second name."""
    girls = rng.sample(lexicon.GIRLS, count)
    boys = rng.sample(lexicon.BOYS, count)
    seconds = rng.sample(lexicon.SECOND_NAMES, count)
    female = [rng.random() < 0.5 for _ in range(count)]
    return [Person(girls[i] if female[i] else boys[i], seconds[i], female[i]) for i in range(count)]


def make_things(rng: Random, count: int) -> list[Thing]:
    """`count` things of different kinds; colours and numbers may repeat, as they do in the world."""
    nouns = rng.sample([*lexicon.SINGLES, *lexicon.PLURALS], count)
    return [
        Thing(
            noun,
            rng.choice(lexicon.NUMBERS if noun in lexicon.PLURALS else lexicon.COLOURS),
            noun in lexicon.PLURALS,
        )
        for noun in nouns
    ]


def _cast_size(rng: Random, length: int) -> tuple[int, int]:
    """(people, things) for a story of about `length` tokens."""
    if length < 50:
        return 1, 1
    if length < 110:
        return rng.choice((1, 2)), rng.choice((1, 2))
    if length < 220:
        return rng.choice((2, 3)), rng.choice((2, 3))
    return rng.choice((3, 4)), rng.choice((3, 4, 5))


def tell(rng: Random, length: int, *, dense: bool = False) -> list[Sentence]:
    """Tell a story of about `length` tokens, from one fact up.

    dense: as many people and things as in a story three times as long, met one after the other.
    """
    people, things = _cast_size(rng, 3 * length if dense else length)
    cast = make_people(rng, people)
    story = Story(
        rng,
        World(),
        Narrator(rng),
        cast[1:],
        make_things(rng, things),
        rng.sample(list(lexicon.PLACES), len(lexicon.PLACES)),
        cast[0],
        dense,
    )
    _open(story, length)
    while story.narrator.length < length - 12 or story.waiting:
        if story.narrator.length > length + 10:
            break
        _scene(story, length)
    if length >= 45:
        _close(story)
    return story.narrator.told


def _open(story: Story, length: int) -> None:
    hero, say = story.hero, story.narrator.say
    openings = sentences.ONCE if story.rng.random() < 0.55 else sentences.OPENINGS
    say(openings, story.world.name(hero), a=hero)
    story.cast.append(hero)
    short = length < 45
    place_first = story.rng.random() < 0.5
    if not short or place_first:
        _start(story)
    if not short or not place_first:
        _own(story, hero)


def _start(story: Story) -> None:
    place = story.places.pop()
    story.narrator.say(sentences.STARTS, story.world.move(story.hero, place), a=story.hero, p=place)


def _own(story: Story, person: Person) -> None:
    if not story.things:
        return
    thing = story.things.pop()
    story.narrator.say(sentences.HAS, *story.world.own(person, thing), a=person, t=thing)
    if story.rng.random() < 0.4:
        _remark_on(story, thing)


def _remark_on(story: Story, thing: Thing) -> None:
    lines = lexicon.PLURALS[thing.noun] if thing.plural else lexicon.SINGLES[thing.noun]
    said = thing.detailed if story.rng.random() < 0.15 else thing.noun
    story.narrator.remark(f"The {said} {story.narrator.pick(lines)}.")


def _scene(story: Story, length: int) -> None:
    """Someone new, a gift, a journey, or talk; mostly a paragraph of its own."""
    if story.rng.random() < (0.3 if story.dense else 0.65):
        story.narrator.paragraph()
    progress = story.narrator.length / length
    share = 1 - len(story.waiting) / (len(story.waiting) + len(story.cast))
    if story.waiting and (story.dense or progress > 0.6 * share - 0.3):
        return _meet(story)
    gift = _gift_at_hand(story)
    roll = story.rng.random()
    if gift and roll < 0.42:
        return _give(story, *gift)
    if roll < 0.75:
        return _journey(story)
    return _rest(story)


def _meet(story: Story) -> None:
    """The hero goes somewhere and meets the next of those who wait for their part."""
    other, world, say = story.waiting.pop(), story.world, story.narrator.say
    if story.hero not in world.place or story.rng.random() < (0.3 if story.dense else 0.8):
        _travel(story, story.hero)
    place = world.place[story.hero]
    say(sentences.MEETS, world.name(other), world.move(other, place), b=other, p=place)
    story.cast.append(other)
    if story.rng.random() < 0.6:
        say(sentences.GREETINGS, a=story.hero, b=other)
    while story.things and story.rng.random() < 0.7:
        _own(story, story.rng.choice((other, other, story.hero)))


def _next_place(story: Story, person: Person) -> str:
    """A fresh place, or sometimes one where somebody else already is."""
    here = story.world.place.get(person)
    others = [place for place in story.world.place.values() if place != here]
    if others and story.rng.random() < 0.4:
        return story.rng.choice(others)
    if not story.places:
        story.places = story.rng.sample(
            [place for place in lexicon.PLACES if place != here], len(lexicon.PLACES) - 1
        )
    return story.places.pop() if story.places[-1] != here else story.places.pop(0)


def _travel(story: Story, person: Person) -> None:
    place = _next_place(story, person)
    story.narrator.say(sentences.MOVES, story.world.move(person, place), a=person, p=place)
    if story.rng.random() < 0.45:
        story.narrator.remark(story.narrator.pick(lexicon.PLACES[place]))


def _journey(story: Story) -> None:
    """One person, or two who are together, go somewhere else."""
    world, rng = story.world, story.rng
    traveller = rng.choice(story.cast)
    friends = world.together_with(traveller) if traveller in world.place else []
    if not friends or rng.random() < 0.6:
        return _travel(story, traveller)
    friend, place = rng.choice(friends), _next_place(story, traveller)
    events = world.move(traveller, place), world.move(friend, place)
    story.narrator.say(sentences.MOVES_BOTH, *events, a=traveller, b=friend, p=place)
    if rng.random() < 0.5:
        story.narrator.remark(story.narrator.pick(lexicon.PLACES[place]))


def _gift_at_hand(story: Story) -> tuple[Thing, Person] | None:
    """A thing and someone who is where its holder is, or None."""
    chances = [
        (thing, friend)
        for thing, holder in story.world.holder.items()
        if holder in story.world.place
        for friend in story.world.together_with(holder)
    ]
    return story.rng.choice(chances) if chances else None


def _give(story: Story, thing: Thing, receiver: Person) -> None:
    giver, narrator = story.world.holder[thing], story.narrator
    if story.rng.random() < 0.5:
        narrator.hear(sentences.ASKS, receiver, giver, thing)
    narrator.say(sentences.GIVES, story.world.give(thing, receiver), a=giver, b=receiver, t=thing)
    if story.rng.random() < 0.6:
        narrator.hear(sentences.THANKS, receiver, giver, thing)


def _rest(story: Story) -> None:
    """Nothing changes: talk, a look at a thing, the weather."""
    rng, narrator = story.rng, story.narrator
    person = rng.choice(story.cast)
    friends = story.world.together_with(person) if person in story.world.place else []
    if friends and rng.random() < 0.6:
        narrator.say(sentences.TALKS, a=person, b=rng.choice(friends))
        return
    if rng.random() < 0.5:
        narrator.remark(narrator.pick(sentences.WEATHER))
    held = story.world.held_by(person)
    if held and rng.random() < 0.6:
        thing = rng.choice(held)
        narrator.say(sentences.SHOWS, a=person, t=thing)
        _remark_on(story, thing)
    else:
        narrator.say(sentences.FEELINGS, a=person)


def _close(story: Story) -> None:
    story.narrator.paragraph()
    story.narrator.remark(story.narrator.pick(sentences.ENDINGS))
    if story.rng.random() < 0.4:
        story.narrator.remark(sentences.THE_END)
