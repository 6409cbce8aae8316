"""How learners are called on the wall: by the name they gave, told apart where two gave the same."""

from __future__ import annotations

from collections.abc import Sequence

from labcore.lab.wall.entry import Entry


def shown_names(entries: Sequence[Entry]) -> list[str]:
    """A name for each entry, in order, no two the same: "Ada", "Ada (2)"; "learner 3" for who gave none."""
    names: list[str] = []
    taken: set[str] = set()
    for number, entry in enumerate(entries, 1):
        given = " ".join(entry.name.split()) or f"learner {number}"
        name, count = given, 1
        while name.casefold() in taken:
            count += 1
            name = f"{given} ({count})"
        taken.add(name.casefold())
        names.append(name)
    return names
