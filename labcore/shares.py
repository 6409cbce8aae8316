"""Shares of a roof, and which of them can be trusted: a roof that is exceeded is none.

Benchmarks, lessons and comparisons state what work reached of what the machine was measured to allow.
"""

from __future__ import annotations

from collections.abc import Iterable

# Work and roof are medians or bests of a few runs, and each moves by some percent from minute to minute.
TOLERANCE = 0.05
DOUBT = "(!)"
UNTRUSTED = (
    f"{DOUBT}: more than the roof, which was measured as the most that is possible; such a share cannot be "
    "trusted."
)
IN_CACHE = f"{UNTRUSTED} On a CPU a small model may lie in a cache, which is faster than memory."
UNTRUSTED_AGAIN = f"{UNTRUSTED} It stayed when the roof was measured again, in turns with the work."


def is_trusted(share: float | None) -> bool:
    """Whether a share of a roof (1: all of it) can be: at most 1 + TOLERANCE. A roof that is exceeded by more
    is none. True for None, where no roof is known."""
    return share is None or share <= 1 + TOLERANCE


def share_text(share: float | None, digits: int = 0) -> str:
    """ "87%"; "140% (!)" for a share that cannot be trusted; "–" where there is none."""
    if share is None:
        return "–"
    return f"{share:.{digits}%}" if is_trusted(share) else f"{share:.{digits}%} {DOUBT}"


def doubt_of(shares: Iterable[float | None], sentence: str = UNTRUSTED_AGAIN) -> str:
    """The sentence on the mark, after a space, where one of the shares bears it; else ""."""
    return "" if all(map(is_trusted, shares)) else f" {sentence}"
