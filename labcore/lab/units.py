"""Numbers as people read them: three significant digits and a unit of the right size.

Sizes are decimal (GB = 1e9 bytes); where a binary unit is meant, the text says GiB.
"""

from __future__ import annotations

import math

_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def significant(value: float, digits: int = 3) -> str:
    """`value` to `digits` significant digits, with thousands separated and no exponent below 1e15.

    >>> significant(43.576), significant(1234567), significant(0.00234)
    ('43.6', '1,230,000', '0.00234')
    """
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    rounded = round(value, decimals)
    if abs(rounded) >= 1e15 or abs(rounded) < 1e-6:
        return f"{rounded:.{digits - 1}e}"
    text = f"{rounded:,.{max(decimals, 0)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def si(value: float, unit: str, digits: int = 3) -> str:
    """`value` with a decimal prefix: `si(2.039e12, "B/s")` is "2.04 TB/s"."""
    for scale, prefix in _PREFIXES:
        if abs(value) >= scale or (scale == 1.0):
            return f"{significant(value / scale, digits)} {prefix}{unit}".rstrip()
    raise AssertionError("unreachable: the last prefix takes every value")


def with_unit(value: float, unit: str) -> str:
    """ "812 tok/s", "4.1×", "12": a number with its unit behind it."""
    return f"{significant(value)}{unit}" if unit == "×" else f"{significant(value)} {unit}".rstrip()


def seconds(value: float, digits: int = 3) -> str:
    """A duration in s, ms or µs: `seconds(0.0229)` is "22.9 ms"."""
    for scale, unit in _TIMES:
        if abs(value) >= scale:
            return f"{significant(value / scale, digits)} {unit}"
    return f"{significant(value / _TIMES[-1][0], digits)} {_TIMES[-1][1]}"


def gigabytes(value: float, digits: int = 3) -> str:
    """Bytes as GB of 1e9 bytes."""
    return f"{significant(value / 1e9, digits)} GB"
