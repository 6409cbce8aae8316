"""MODEL_CARD.md's tables, from evaluation.json and training.json: no number in them is typed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- measured: begin (written by evaluate.py) -->", "<!-- measured: end -->"
TARGETS = (
    ("induction anywhere in 512 tokens", "induction", ("1-64", "65-128", "129-256", "257-512"), 0.98),
    ("binding within 256 tokens", "binding", ("1-64", "65-128", "129-256"), 0.90),
)
AGREEMENT_TARGET = 0.60


def write_card(home: Path) -> None:
    """Replace what stands between the two marks of MODEL_CARD.md. Raises ValueError when they are missing."""
    card = home / "MODEL_CARD.md"
    text = card.read_text(encoding="utf-8")
    before, after = text.index(BEGIN) + len(BEGIN), text.index(END)
    evaluation = json.loads((home / "evaluation.json").read_text(encoding="utf-8"))
    training = json.loads((home / "training.json").read_text(encoding="utf-8"))
    body = "\n\n".join((_training(training), _summary(evaluation), _recall(evaluation), _targets(evaluation)))
    card.write_text(f"{text[:before]}\n\n{body}\n\n{text[after:]}", encoding="utf-8")


def _training(training: dict[str, Any]) -> str:
    rows = ["| run | tokens seen | steps | minutes |", "|---|---|---|---|"]
    for name, run in training["runs"].items():
        rows.append(
            f"| {name} | {run['tokens'] / 1e6:.1f} million | {run['steps']} | {run['seconds'] / 60:.0f} |"
        )
    return "\n".join([*rows, "", f"Trained on {training['hardware']}."])


def _summary(evaluation: dict[str, Any]) -> str:
    rows = [
        "| | parameters | perplexity (held out) | recall: induction | binding | last update |",
        "|---|---|---|---|---|---|",
    ]
    for name, parameters in evaluation["parameters"].items():
        table = evaluation["recall"][name]["by_distance"]
        shares = " | ".join(
            f"{table[grade]['all']['share']:.1%}" for grade in ("induction", "binding", "update")
        )
        rows.append(
            f"| {name} | {parameters:,} | {evaluation['perplexity'][name]['perplexity']:.3f} | {shares} |"
        )
    return "\n".join(rows)


def _recall(evaluation: dict[str, Any]) -> str:
    table = evaluation["recall"]["story"]["by_distance"]
    columns = list(table["induction"])
    rows = [
        "Recall of `story` by distance in tokens from the fact to the answer: right / asked (95 % interval).",
        "",
        f"| | {' | '.join(columns)} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for grade, cells in table.items():
        rows.append(f"| {grade} | " + " | ".join(_cell(cells[column]) for column in columns) + " |")
        guess = " | ".join(f"{cells[column]['guessing']:.0%}" for column in columns)
        rows.append(f"| *{grade}, by guessing* | {guess} |")
    kinds = evaluation["recall"]["story"]["by_kind"]
    rows += [
        "",
        "Guessing means: naming any word of the story that fits the question, a colour for a colour.",
        "",
        "By what is asked: " + ", ".join(f"{kind} {_cell(cell)}" for kind, cell in kinds.items()) + ".",
    ]
    return "\n".join(rows)


def _cell(cell: dict[str, Any]) -> str:
    low, high = cell["interval"]
    return f"{cell['right']}/{cell['count']} ({low:.0%}–{high:.0%})"


def _targets(evaluation: dict[str, Any]) -> str:
    table = evaluation["recall"]["story"]["by_distance"]
    rows = ["| target | asked for | measured | |", "|---|---|---|---|"]
    for words, grade, columns, target in TARGETS:
        right, count = (sum(table[grade][column][key] for column in columns) for key in ("right", "count"))
        rows.append(_target(words, target, right / count))
    rows.append(
        _target(
            "draft's agreement on greedy tokens", AGREEMENT_TARGET, evaluation["draft_agreement"]["share"]
        )
    )
    samples = evaluation["samples"]
    slips = samples["slips"]
    repeated = sum(count > 1 for count in slips.values())
    rows.append(
        f"| slips that repeat in {len(samples['texts'])} greedy samples | 0 | {repeated} "
        f"| {'missed' if repeated else 'met'}: the mechanical checks found {sum(slips.values())} slips |"
    )
    return "\n".join(rows)


def _target(words: str, target: float, measured: float) -> str:
    verdict = "met" if measured >= target else f"missed by {100 * (target - measured):.1f} points"
    return f"| {words} | {target:.0%} | {measured:.1%} | {verdict} |"
