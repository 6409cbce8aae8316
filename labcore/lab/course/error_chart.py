"""Predictions over measurements as one small drawing in SVG, legible in print and without any script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from labcore.lab import theme
from labcore.lab.units import significant

_WIDTH, _LEFT, _RIGHT, _ROW, _TOP = 760, 70, 150, 22, 20
_POWERS = 4  # the axis ends at 10,000×; what is further off stands at its end, with its factor in words


@dataclass(frozen=True)
class Point:
    """One scored prediction: its id and lesson, said over measured, and whether it was locked."""

    id: str
    lesson: int
    ratio: float
    locked: bool

    @property
    def off_by(self) -> float:
        """How far apart, as a ratio of at least 1."""
        return max(self.ratio, 1 / self.ratio)


def error_chart(points: Sequence[Point]) -> str:
    """A dot for each prediction on a logarithmic axis of said over measured; the band is a factor of 2.

    A filled circle is an answer that was locked, a hollow square a default that nobody changed. Points must
    be finite and at least one. Returns an HTML figure.
    """
    farthest = math.log10(max(point.off_by for point in points))
    power = min(_POWERS, max(1, math.ceil(farthest)))
    bottom = _TOP + _ROW * len(points)

    def x(ratio: float) -> float:
        place = min(max(math.log10(ratio), -power), power)
        return _LEFT + (place + power) / (2 * power) * (_WIDTH - _LEFT - _RIGHT)

    band = (
        f'<rect x="{x(0.5):.1f}" y="{_TOP - 8}" width="{x(2) - x(0.5):.1f}" height="{bottom - _TOP + 8}" '
        f'fill="{theme.SKY}" opacity="0.25"/>'
    )
    marks = "".join(_mark(x(10.0**k), 10.0**k, bottom) for k in range(-power, power + 1))
    dots = "".join(_dot(point, x(point.ratio), _TOP + _ROW * i + 8) for i, point in enumerate(points))
    close = sum(point.off_by < 2 for point in points)
    said = (
        f"What was said over what was measured: {close} of {len(points)} predictions lie in the band, "
        "within 2×. Filled circles were locked, hollow squares are defaults."
    )
    return (
        f'<figure><svg role="img" aria-label="{escape(said)}" viewBox="0 0 {_WIDTH} {bottom + 34}" '
        f'width="{_WIDTH}" font-family="system-ui, sans-serif" font-size="13">{band}{marks}{dots}</svg>'
        f"<figcaption>{escape(said)}</figcaption></figure>"
    )


def _mark(x: float, ratio: float, bottom: int) -> str:
    """A grid line with its number; the line of 1 is the truth."""
    width = 2 if ratio == 1 else 1
    color = theme.INK if ratio == 1 else "#B8B8B4"
    label = "as measured" if ratio == 1 else f"{ratio:,g}×"
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 8}" y2="{bottom}" stroke="{color}" '
        f'stroke-width="{width}"/>'
        f'<text x="{x:.1f}" y="{bottom + 20}" text-anchor="middle" fill="{theme.INK}">{label}</text>'
    )


def _dot(point: Point, x: float, y: float) -> str:
    """The prediction's mark, its id to the left."""
    if point.locked:
        mark = f'<circle cx="{x:.1f}" cy="{y}" r="6" fill="{theme.BLUE}"/>'
    else:
        mark = (
            f'<rect x="{x - 5:.1f}" y="{y - 5}" width="10" height="10" fill="#fff" '
            f'stroke="{theme.VERMILLION}" stroke-width="2"/>'
        )
    off = "as measured" if point.off_by < 1.005 else f"{significant(point.off_by)}× too {_side(point)}"
    return (
        f'<text x="4" y="{y + 5}" fill="{theme.INK}">{escape(point.id)}</text>{mark}'
        f'<text x="{_WIDTH - 4}" y="{y + 5}" text-anchor="end" fill="{theme.INK}">{off}</text>'
    )


def _side(point: Point) -> str:
    return "high" if point.ratio > 1 else "low"
