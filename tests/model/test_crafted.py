"""Crafted files: each is refused by one sentence, in bounded memory, and none hangs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import labcore
from labcore.errors import CheckpointError, PromptError
from labcore.tokenizer import Tokenizer
from labcore.tokenizer_file import _ensure_quick
from tests.model.crafted import CONFIGS, FILES
from tests.model.crafted_gguf import GGUFS
from tests.model.crafted_tokenizers import TOKENIZERS

CLIENT, ROOT = Path(__file__).with_name("crafted_client.py"), Path(__file__).parents[2]
MOST_BYTES = 200 << 20
CASES = {case.name: case for case in (*CONFIGS, *FILES, *TOKENIZERS, *GGUFS)}


@pytest.fixture(scope="module")
def played(checkpoint: Callable[[str], tuple[Path, Any]], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What one process said of all of them, one after the other: its memory's peak is that of the worst."""
    good, _ = checkpoint("llama")
    root = tmp_path_factory.mktemp("crafted")
    sources = {}
    for name, case in CASES.items():
        folder = root / name
        shutil.copytree(good, folder)
        made = case.spoil(folder)
        sources[name] = str(made if isinstance(made, Path) else folder)
    run = subprocess.run(
        [sys.executable, str(CLIENT), str(good)],
        input="\n".join(sources.values()), env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    found = json.loads(run.stdout)
    shutil.rmtree(root)
    return {name: (*found["outcomes"][source], found["rise"][source]) for name, source in sources.items()}


@pytest.mark.parametrize("name", CASES)
def test_refused_by_one_sentence_in_bounded_memory(played: Any, name: str) -> None:
    case = CASES[name]
    error, sentence, rise = played[name]
    assert (error, re.search(case.sentence, sentence) is not None) == (case.error, True), (error, sentence)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert len(sentence) < 1_000
    assert rise < MOST_BYTES


# Patterns of the families, with that of others' pre-tokenizers, are not taken for traps.
ORDINARY = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "tekken": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "possessive": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+",
    "bloom": r" ?[^(\s|[.,!?…。，、।۔،])]+",
    "digits": r"[0-9][0-9][0-9]",
    "threes": r"(?:\p{N}{3})+",
    "cjk": r"[一-龥぀-ゟ゠-ヿ]+",
    "spaces": " {2,}",
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_patterns_are_taken(name: str) -> None:
    _ensure_quick(ORDINARY[name])


class _Panics:
    """A library whose own code fails, as its bindings tell it."""

    class PanicException(BaseException):
        pass

    def encode(self, *_: object, **__: object) -> None:
        raise self.PanicException("regex search error\nbacktrace")

    decode = encode


def test_a_panic_of_the_library_is_a_sentence() -> None:
    """It passes `except Exception`, and crossed the server as a plain-text 500."""
    tokenizer = labcore.load("story").tokenizer
    assert tokenizer is not None
    broken = Tokenizer.__new__(Tokenizer)
    broken.__dict__ |= tokenizer.__dict__ | {"_library": _Panics()}
    with pytest.raises(PromptError, match=r"this text of 5 characters \(regex search error\); send"):
        broken.encode("hello")
    with pytest.raises(CheckpointError, match=r"cannot decode these 2 tokens \(regex search error\)"):
        broken.decode([1, 2])
