"""The held-out set: stories for perplexity, and single questions by grade and distance.

Its seeds begin with "heldout", those of the training rows with "train": no document is in both.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from data.story import lexicon
from data.story.questions import Document, Recall, make_document

PATH = Path(__file__).parent / "heldout.jsonl"
STORIES = 300
# Upper ends of the distance ranges, in tokens from the fact to the answer.
DISTANCES = (64, 128, 256, 512)
# Questions of each kind in each range, 75 of a grade; how many are of gifts (a thing given twice needs room).
PER_KIND = {"name": 75, "colour": 25, "number": 25, "owner": 25}
GIFTS = (0, 0, 4, 10)
_LENGTHS = (100, 150, 230, 430)  # of the stories that questions of a range are put to, at most
_LONGEST = 500  # tokens of a prompt


def stories() -> Iterator[dict[str, Any]]:
    """Whole documents of all lengths."""
    for number in range(STORIES):
        length = 40 + (number * 97) % 170
        yield {"type": "story", "text": make_document(f"heldout story {number}", length).text}


def recalls(tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    """Stories with one question at the end, PER_KIND in each distance range, none without a choice."""
    for place, longest in enumerate(_LENGTHS):
        missing = Counter(PER_KIND | {"holder": GIFTS[place], "place": 75 - GIFTS[place]})
        number = 0
        while missing.total():
            number += 1
            length = longest - number % (longest // 3)
            document = make_document(f"heldout recall {place} {number}", length, questions=1, dense=place < 2)
            item = question(document, document.recalls[-1], tokenizer)
            low = DISTANCES[place - 1] if place else 0
            wanted = (
                guessing(item) <= 0.5
                and low < item["distance"] <= DISTANCES[place]
                and item["prompt_tokens"] <= _LONGEST
            )
            # A thing that never changed hands needs no latest telling.
            if wanted and missing[item["kind"]] and (item["grade"] != "update" or item["tellings"] > 1):
                missing[item["kind"]] -= 1
                yield item


_CANDIDATES = {
    "name": lexicon.SECOND_NAMES,
    "colour": lexicon.COLOURS,
    "number": lexicon.NUMBERS,
    "owner": (*lexicon.GIRLS, *lexicon.BOYS),
    "holder": (*lexicon.GIRLS, *lexicon.BOYS),
    "place": tuple(lexicon.PLACES),
}


def guessing(item: dict[str, Any]) -> float:
    """The chance of being right by naming any fitting word of the prompt: a colour for a colour."""
    return 1 / len(set(re.findall(r"\w+", item["prompt"])) & set(_CANDIDATES[item["kind"]]))


def question(document: Document, recall: Recall, tokenizer: Tokenizer) -> dict[str, Any]:
    """A question as a prompt that ends where the answer begins, with its answer and distance in tokens."""
    text = document.text
    cut = text.rindex("Answer:", 0, recall.start) + len("Answer:")
    if recall.kind == "name":  # the first part is given, the second asked
        cut = recall.start - 1
    encoding = tokenizer.encode(text, add_special_tokens=False)
    return {
        "type": "recall",
        "grade": recall.grade,
        "kind": recall.kind,
        "distance": encoding.char_to_token(recall.start) - encoding.char_to_token(recall.told - 1),
        "tellings": recall.tellings,
        "prompt_tokens": len(tokenizer.encode(text[:cut]).ids),
        "answer": text[cut + 1 : recall.end],
        "prompt": text[:cut],
    }


def write(tokenizer: Tokenizer, path: Path = PATH) -> Path:
    """Write the set as JSON lines."""
    lines = [json.dumps(item, separators=(",", ":")) for item in (*stories(), *recalls(tokenizer))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read(kind: str, path: Path = PATH) -> list[dict[str, Any]]:
    """The items of type "story" or "recall"."""
    items = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return [item for item in items if item["type"] == kind]
