"""Stories that quantization methods look at: like those of the training, with seeds of their own."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from data.story.questions import make_document

PATH = Path(__file__).parent / "calibration.json"
STORIES = 48


def texts() -> list[str]:
    """Short and long, ordinary and dense. Neither training nor held-out rows have seeds that begin so."""
    rng = Random("calibration")
    return [
        make_document(f"calibration {number}", rng.randint(60, 400), dense=number % 3 == 0).text
        for number in range(STORIES)
    ]


if __name__ == "__main__":
    PATH.write_text(json.dumps(texts(), indent=0) + "\n", encoding="utf-8")
