"""Contrast of text on what it stands on (WCAG 2: at least 4.5), in HTML with inline styles."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser

ENOUGH = 4.5
Colour = tuple[float, float, float]
VOID = ("br", "hr", "img", "input", "rect", "line", "circle", "path")


def colour(text: str) -> Colour:
    """Red, green, blue from 0 to 1 of "#RGB" or "#RRGGBB"."""
    digits = text.lstrip("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    red, green, blue = (int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4))
    return red, green, blue


def luminance(of: Colour) -> float:
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in of]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def ratio(one: Colour, other: Colour) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def mixed(front: Colour, behind: Colour, opacity: float) -> Colour:
    red, green, blue = (f * opacity + b * (1 - opacity) for f, b in zip(front, behind, strict=True))
    return red, green, blue


@dataclass(frozen=True)
class Style:
    """How text looks at one place of a page."""

    ink: Colour
    ground: Colour
    opacity: float = 1.0

    @property
    def contrast(self) -> float:
        return ratio(mixed(self.ink, self.ground, self.opacity), self.ground)

    def inside(self, css: str) -> Style:
        """Within an element with this inline style."""
        rules = dict(re.findall(r"([\w-]+)\s*:\s*([^;]+)", css))
        ground = re.match(r"#[0-9A-Fa-f]+", rules.get("background", ""))
        made = replace(self, ground=colour(ground[0])) if ground else self
        made = replace(made, ink=colour(rules["color"])) if rules.get("color", "").startswith("#") else made
        return replace(made, opacity=made.opacity * float(rules.get("opacity", 1)))


# JupyterLab's own text and page.
THEMES = {
    "light": Style(colour("#000"), colour("#FFF"), 0.87),
    "dark": Style(colour("#FFF"), colour("#111"), 1.0),
}


@dataclass
class _Reader(HTMLParser):
    """Walks HTML and keeps the text that is hard to read. Signs without a letter or digit are no text."""

    theme: Style
    faint: list[str] = field(default_factory=list)
    stack: list[Style] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.stack.append(self.theme)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.stack.append(self.stack[-1].inside(dict(attrs).get("style") or ""))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            self.stack.pop()

    def handle_data(self, data: str) -> None:
        if re.search(r"\w", data) and self.stack[-1].contrast < ENOUGH:
            self.faint.append(f"{data.strip()[:40]!r}: {self.stack[-1].contrast:.2f}")


def faint_in_html(html: str) -> list[str]:
    """Text of less contrast than enough, in either theme."""
    html = re.sub(r"<(style|script)>.*?</\1>", "", html, flags=re.DOTALL)
    found = []
    for name, theme in THEMES.items():
        reader = _Reader(theme)
        reader.feed(html)
        found += [f"{name}: {words}" for words in reader.faint]
    return found
