"""The exact numbers beside a figure, as an HTML table and as plain text.

A table is a list of rows, each a dict from column name (with its unit) to a value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from labcore.lab.units import significant

Rows = Sequence[Mapping[str, Any]]


def columns(rows: Rows) -> list[str]:
    """Every column that any row names, in order of first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def cell(value: Any) -> str:
    """One value as text: yes/no, whole numbers with separators, other numbers to three digits."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return significant(value) if isinstance(value, float) else str(value)


def as_text(rows: Rows) -> str:
    """An aligned plain-text table; numbers to the right."""
    names = columns(rows)
    body = [[cell(row.get(name)) for name in names] for row in rows]
    widths = [max(len(text) for text in column) for column in zip(names, *body, strict=True)]
    numeric = [_is_numeric(rows, name) for name in names]

    def line(texts: Sequence[str]) -> str:
        parts = zip(texts, widths, numeric, strict=True)
        return "  ".join(t.rjust(w) if right else t.ljust(w) for t, w, right in parts).rstrip()

    return "\n".join([line(names), line(["-" * width for width in widths]), *(line(texts) for texts in body)])


def as_html(rows: Rows, of: str = "") -> str:
    """The same table as HTML that follows the notebook's theme.

    of: whose numbers they are, for who hears the table instead of seeing where it stands. A column without
    a name names the rows.
    """
    names = columns(rows)
    right = {name: _is_numeric(rows, name) for name in names}

    def tagged(tag: str, name: str, text: str) -> str:
        align = "right" if right[name] else "left"
        style = f"text-align:{align};padding:2px 12px 2px 0;font-variant-numeric:tabular-nums"
        return f'<{tag} style="{style}">{escape(text)}</{tag[:2]}>'

    head = "".join(tagged('th scope="col"' if name else "td", name, name) for name in names)
    kinds = {name: "td" if name else 'th scope="row"' for name in names}
    body = "".join(
        "<tr>" + "".join(tagged(kinds[name], name, cell(row.get(name))) for name in names) + "</tr>"
        for row in rows
    )
    label = escape(f"Numbers of: {of}" if of else f"Numbers: {', '.join(filter(None, names))}")
    style = "border-collapse:collapse;font-size:0.92em;margin:2px 0 8px 0"
    content = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<table class="labcore-table" aria-label="{label}" style="{style}">{content}</table>'


def _is_numeric(rows: Rows, name: str) -> bool:
    values = [row[name] for row in rows if row.get(name) is not None]
    return bool(values) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
