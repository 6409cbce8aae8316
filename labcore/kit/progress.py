"""One line that moves on a terminal, and a few lines where output goes to a file."""

from __future__ import annotations

import sys
import time
from typing import TextIO


class Progress:
    """How far one piece of work is, in whatever it counts."""

    def __init__(self, what: str, total: float, out: TextIO | None = None) -> None:
        self.what = what
        self.total = total
        self.out = out or sys.stdout
        self._started = time.monotonic()
        self._shown = -1  # the last percentage on the line
        self._width = 0

    def show(self, done: float, detail: str = "") -> None:
        """Update the line where the share done is another one: each percent, or each quarter in a file."""
        percent = int(100 * done / self.total) if self.total else 100
        live = self.out.isatty()
        if percent == self._shown or (not live and percent // 25 == self._shown // 25):
            return
        self._shown = percent
        self._print(f"  {self.what}: {percent}% {detail}".rstrip(), "\r" if live else "\n")

    def end(self, result: str) -> None:
        """Replace the line by what came out, with the seconds it took."""
        self._print(f"  {self.what}: {result}, {time.monotonic() - self._started:.0f} s", "\n")

    def _print(self, line: str, end: str) -> None:
        padding = " " * (self._width - len(line))
        self._width = len(line) if end == "\r" else 0
        print(line + padding, end=end, file=self.out, flush=True)
