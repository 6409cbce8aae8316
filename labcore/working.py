"""What long work says of itself: a line that moves on a terminal, and lines with the time in a file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

Say = Callable[[str], None]


@contextmanager
def working(console: Console, text: str) -> Iterator[Say]:
    """Show the text while the block runs, and every text that is given to what this yields."""
    if not console.is_terminal:
        say = lines(console)
        say(text)
        yield say
        return
    from rich.markup import escape

    with console.status(escape(text)) as status:
        yield lambda text: status.update(escape(text))


def lines(console: Console) -> Say:
    """What prints each text on a line of a file, behind the seconds since this call, and at once.

    On a terminal it prints nothing: there a bar or a status moves.
    """
    if console.is_terminal:
        return lambda _: None
    started = time.monotonic()

    def say(text: str) -> None:
        elapsed = f"{time.monotonic() - started:7.1f} s"
        console.print(f"{elapsed}  {text}", markup=False, highlight=False, soft_wrap=True)
        console.file.flush()

    return say
