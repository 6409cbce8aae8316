"""Markdown, formulas and code as HTML that asks nobody: MathML for formulas, pygments for code."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from functools import lru_cache
from html import escape
from typing import Any

from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

_LINK = re.compile(r'<a href="([^"#]*)(#[^"]*)?">(.*?)</a>', re.DOTALL)
_HEADING = re.compile(r"<h([1-3])>(.*?)</h\1>", re.DOTALL)
_COLOR = re.compile(r"\x1b\[[^m]*m")
_TAG = re.compile(r"<[^>]+>")


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    made = MarkdownIt("commonmark", {"html": False}).enable("table").enable("strikethrough")
    return made.use(dollarmath_plugin, allow_space=False, allow_digits=False, renderer=formula)


def formula(tex: str, options: dict[str, Any]) -> str:
    """TeX as MathML, which browsers draw by themselves."""
    return convert(tex.strip(), display="block" if options.get("display_mode") else "inline")


def markdown(source: str, pages: Collection[str]) -> str:
    """A markdown cell as HTML. `pages`: names of lessons that have a page; other links become plain text."""
    return _with_anchors(_with_links(_parser().render(source), pages))


def _with_links(html: str, pages: Collection[str]) -> str:
    """Links to notebooks become links to their pages; to what the site does not hold, text."""

    def link(found: re.Match[str]) -> str:
        target, fragment, words = found[1], found[2] or "", found[3]
        name = target.removesuffix(".ipynb").removesuffix(".md").rsplit("/", 1)[-1]
        if name in pages and target.endswith((".ipynb", ".md")):
            return f'<a href="{name}.html{fragment}">{words}</a>'
        if re.match(r"https?://", target):
            return found[0]
        return words if target else found[0]

    return _LINK.sub(link, html)


def _with_anchors(html: str) -> str:
    """Each heading with its address; the second "Exercises" of a page is at "exercises-2"."""
    seen: Counter[str] = Counter()

    def anchored(found: re.Match[str]) -> str:
        anchor = slug(plain(found[2]))
        seen[anchor] += 1
        if seen[anchor] > 1:
            anchor = f"{anchor}-{seen[anchor]}"
        return f'<h{found[1]} id="{anchor}">{found[2]}</h{found[1]}>'

    return _HEADING.sub(anchored, html)


def slug(text: str) -> str:
    """A heading as an address: "Part 1 · One pass" is "part-1-one-pass"."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def plain(html: str) -> str:
    """The words of some HTML, on one line."""
    words = _TAG.sub(" ", html).replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"')
    return " ".join(words.replace("&#x27;", "'").replace("&amp;", "&").split())


def code(source: str) -> str:
    """Python with its syntax in colours (classes; `code_style` has the colours)."""
    return highlight(source, PythonLexer(), HtmlFormatter(cssclass="code", wrapcode=True))


def code_style() -> str:
    """Colours of code for light and dark pages, chosen for contrast."""
    light, dark = (HtmlFormatter(style=name).get_style_defs(".code") for name in ("vs", "github-dark"))
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n"


def preformatted(text: str) -> str:
    """Printed text as it stood at the end: without colours, and without what a progress bar wrote over."""
    lines = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in _COLOR.sub("", text).split("\n")]
    return f'<pre class="printed">{escape(chr(10).join(lines))}</pre>'
