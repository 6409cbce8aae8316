"""Planted-bug hunts: a copy of a labcore function with one bug, to be found with a failing check.

The notebook's cell holds the copy under `@lab.hunt("02.A")`. The decorator runs the function as it
stands there, with the names of its home module in reach, checks its behaviour by properties (never its
text) and says what is wrong with what it does. In solution mode the function from labcore itself is
checked. A lesson's hunts live in `lessonNN.py` beside this file, one `@planted(...)` each.
"""

from __future__ import annotations

from labcore.lab.hunts.registry import Hunt, find, hunt, of_lesson, planted

__all__ = ["Hunt", "find", "hunt", "of_lesson", "planted"]
