"""Measure the trained models on the held-out set: perplexity, recall, draft agreement, greedy samples.

    python -m data.story.evaluate

writes evaluation.json and the tables of MODEL_CARD.md, all computed in fp32 from the exported files.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import labcore
from data.story import heldout
from data.story.card import write_card
from data.story.english import grammar_slips
from labcore.model import Model
from labcore.quality import wilson

HOME = Path(__file__).parent
SAMPLE_TOKENS = 400
PROMPTS = (
    "Once upon a time",
    "Once upon a time there was a girl called",
    "Once upon a time there lived a brave boy named",
    "Once upon a time, far away by the sea,",
    "Once upon a time, when the world was young,",
    "Once upon a time a boy called Theo",
    "Long ago, in a small village,",
    "One snowy morning,",
    "One sunny morning, Mia Talo",
    "This is the story of a clever girl",
    "Not far from here",
    "It was a windy day, and",
    "In a house with a crooked chimney",
    "There was once a dreamy boy",
    "Zoe Webb was a curious girl.",
    "Leo Moss woke up early on a rainy day. He had a purple drum.",
    "Once upon a time there was a girl called Ivy Reed. She was at the lighthouse.",
    "Once upon a time there was a boy called Sam Holm. He had bought seven plums at the fair.",
    "This is the story of a merry boy called Otto Gull. What Otto loved most was a golden bell.",
    "Long ago, in a small village, there was a girl called Nora Vale. That day she was playing at the mill.",
)


def _batches(rows: list[list[int]], size: int = 16) -> Iterator[tuple[list[list[int]], Tensor]]:
    """Rows in batches of similar length, padded on the right (a causal model does not see it)."""
    rows = sorted(rows, key=len)
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        width = max(map(len, part))
        yield part, torch.tensor([row + [0] * (width - len(row)) for row in part])


def _encode(model: Model, text: str) -> list[int]:
    assert model.tokenizer is not None
    return model.tokenizer.encode(text, add_bos=True)


def perplexity(model: Model) -> dict[str, float]:
    """exp of the mean negative log-likelihood per token, the end token included."""
    (eos,) = model.config.eos_token_ids
    total, count = 0.0, 0
    for part, tokens in _batches([[*_encode(model, item["text"]), eos] for item in heldout.read("story")]):
        logits = labcore.logits(model, tokens)
        for row, ids in zip(logits, part, strict=True):
            targets = torch.tensor(ids[1:])
            total += F.cross_entropy(row[: len(ids) - 1], targets, reduction="sum").item()
            count += len(targets)
    return {"perplexity": round(math.exp(total / count), 4), "tokens": count}


def answers_right(model: Model, items: Iterable[dict[str, Any]]) -> list[tuple[dict[str, Any], bool]]:
    """Whether greedy decoding gives each item's whole answer."""
    by_row: dict[tuple[int, ...], tuple[dict[str, Any], int, int]] = {}
    for item in items:
        prompt = _encode(model, item["prompt"])
        row = _encode(model, f"{item['prompt']} {item['answer']}.")
        by_row[tuple(row)] = (item, len(prompt), len(_encode(model, f"{item['prompt']} {item['answer']}")))
    results = []
    for part, tokens in _batches([list(row) for row in by_row]):
        choices = labcore.logits(model, tokens).argmax(-1)
        for row, chosen in zip(part, choices, strict=True):
            item, start, end = by_row[tuple(row)]
            results.append((item, chosen[start - 1 : end - 1].tolist() == row[start:end]))
    return results


def _cell(results: list[tuple[dict[str, Any], bool]]) -> dict[str, Any]:
    right, count = sum(ok for _, ok in results), len(results)
    low, high = wilson(right, count)
    return {
        "right": right,
        "count": count,
        "share": round(right / count, 4),
        "interval": [round(low, 4), round(high, 4)],
        "guessing": round(sum(heldout.guessing(item) for item, _ in results) / count, 4),
    }


def recall(model: Model) -> dict[str, Any]:
    """Recall by grade and distance, and by kind of question."""
    results = answers_right(model, heldout.read("recall"))
    table: dict[str, Any] = {"by_distance": {}, "by_kind": {}}
    for grade in ("induction", "binding", "update"):
        cells, low = {}, 0
        for high in heldout.DISTANCES:
            asked = [pair for pair in results if pair[0]["grade"] == grade]
            cells[f"{low + 1}-{high}"] = _cell([pair for pair in asked if low < pair[0]["distance"] <= high])
            low = high
        cells["all"] = _cell(asked)
        table["by_distance"][grade] = cells
    for kind in sorted({item["kind"] for item, _ in results}):
        table["by_kind"][kind] = _cell([pair for pair in results if pair[0]["kind"] == kind])
    return table


def samples(model: Model) -> dict[str, Any]:
    """Greedy continuations of PROMPTS, and the slips that the mechanical checks find in them."""
    outputs = [labcore.generate(model, prompt, max_new_tokens=SAMPLE_TOKENS) for prompt in PROMPTS]
    texts = [prompt + output.text for prompt, output in zip(PROMPTS, outputs, strict=True)]
    slips = Counter(slip for text in texts for slip in grammar_slips(text))
    return {
        "texts": texts,
        "ended": sum(output.finish_reason == "eos" for output in outputs),
        "slips": dict(slips),
    }


def agreement(model: Model, draft: Model) -> dict[str, float]:
    """The share of the model's greedy tokens, over PROMPTS, that are also the draft's first choice."""
    same = count = 0
    for prompt in PROMPTS:
        output = labcore.generate(model, prompt, max_new_tokens=SAMPLE_TOKENS, ignore_eos=False)
        known = [*output.prompt_tokens, *output.tokens]
        choices = labcore.logits(draft, known)[0].argmax(-1)[len(output.prompt_tokens) - 1 : -1]
        same += int((choices == torch.tensor(output.tokens)).sum())
        count += len(output.tokens)
    return {"share": round(same / count, 4), "tokens": count}


def main() -> None:
    """Evaluate both models and write what came out."""
    model, draft = (labcore.load(name, device="cpu", dtype="float32") for name in ("story", "story-draft"))
    result = {
        "parameters": {"story": model.num_parameters, "story-draft": draft.num_parameters},
        "perplexity": {"story": perplexity(model), "story-draft": perplexity(draft)},
        "recall": {"story": recall(model), "story-draft": recall(draft)},
        "draft_agreement": agreement(model, draft),
        "samples": samples(model),
    }
    (HOME / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    write_card(HOME)


if __name__ == "__main__":
    main()
