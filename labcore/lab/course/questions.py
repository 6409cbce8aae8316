"""The questions of a lesson's predictions, read from its code cells: what is asked, what one chooses from."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Question:
    """One prediction. `options` is empty where the answer is a number in `unit` from `low` to `high`.

    text: the question, with "…" where the lesson puts in a number of its machine or scale.
    cell: the place of the code cell that asks.
    """

    id: str
    text: str
    cell: int
    options: tuple[str, ...] = ()
    unit: str = ""
    low: float | None = None
    high: float | None = None


def of_notebook(path: Path) -> dict[str, Question]:
    """All questions of a notebook by id, in the order in which they are asked."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    found: dict[str, Question] = {}
    for index, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            found |= _of_cell(index, "".join(cell["source"]))
    return found


def _of_cell(index: int, source: str) -> dict[str, Question]:
    tree = ast.parse(source)
    named = {
        target.id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    asked = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _is_predict(node)]
    questions = [_question(index, node, named) for node in sorted(asked, key=lambda node: node.lineno)]
    return {question.id: question for question in questions}


def _is_predict(node: ast.Call) -> bool:
    return isinstance(node.func, ast.Attribute) and node.func.attr == "predict" and len(node.args) >= 2


def _question(index: int, node: ast.Call, named: Mapping[str, ast.expr]) -> Question:
    given = {word.arg: word.value for word in node.keywords}
    options = ast.literal_eval(given["options"]) if "options" in given else ()
    return Question(
        id=ast.literal_eval(node.args[0]),
        text=_text(node.args[1], named),
        cell=index,
        options=tuple(options),
        unit=_literal(given.get("unit")) or "",
        low=_literal(given.get("low")),
        high=_literal(given.get("high")),
    )


def _text(node: ast.expr, named: Mapping[str, ast.expr]) -> str:
    """A question's words; what only the running lesson knows becomes "…"."""
    if isinstance(node, ast.Name) and node.id in named:
        return _text(named[node.id], named)
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part, named) for part in node.values)
    return "…"


def _literal(node: ast.expr | None) -> Any:
    """A written-down value; None for what is computed."""
    return node.value if isinstance(node, ast.Constant) else None
