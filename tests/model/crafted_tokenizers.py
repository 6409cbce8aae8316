"""Crafted tokenizers: what makes a letter long, a line slow, or a loader full; and the sentence for each."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.model.crafted import DEEP, TOKENIZER, Case, replaced, written


def tokenizer(**changes: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        letters = {chr(97 + i): i for i in range(26)}
        plain: dict[str, Any] = {"version": "1.0", "added_tokens": []}
        plain |= dict.fromkeys(
            ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
        )
        model = {"type": "BPE", "vocab": letters, "merges": []} | changes.pop("model", {})
        (folder / TOKENIZER).write_text(json.dumps(plain | {"model": model} | changes))

    return spoil


def split(pattern: str) -> Callable[[Path], None]:
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return tokenizer(pre_tokenizer=step)


def settings(content: str | Callable[[Path], Any]) -> Callable[[Path], None]:
    """A good tokenizer.json with this tokenizer_config.json."""

    def spoil(folder: Path) -> None:
        tokenizer()(folder)
        path = folder / "tokenizer_config.json"
        path.write_text(content) if isinstance(content, str) else content(path)

    return spoil


def replace(pattern: str, content: str, kind: str = "String") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def steps(*inner: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(inner)}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
NO_TOKENIZER = r"tokenizer\.json is not a tokenizer"
TOKENIZERS = [
    Case(
        "letter-10MB",
        tokenizer(normalizer=replace("a", "b" * 10**7)),
        "CheckpointError",
        r"tokenizer\.json has 10,\d+,\d+ bytes, where at most 4,\d+,\d+ are read",
    ),
    Case(
        "letter-1MB",
        tokenizer(normalizer=replace("a", "b" * 10**6)),
        "CheckpointError",
        "its step 'Replace' has a text of 1,000,000 characters, and at most 100",
    ),
    Case(
        "doubled-40-times",
        tokenizer(normalizer=steps(*[replace("a", "aa")] * 40)),
        "CheckpointError",
        r"its steps make a text [\d,]+ times as long, and at most 64",
    ),
    Case(
        "nothing-replaced",
        tokenizer(normalizer=replace("", "b" * 99, "Regex")),
        "CheckpointError",
        "make a text 100 times as long",
    ),
    Case(
        "bytes-of-bytes",
        tokenizer(pre_tokenizer={"type": "Sequence", "pretokenizers": [BYTES] * 40}),
        "CheckpointError",
        "times as long",
    ),
    Case(
        "decoder-grows",
        tokenizer(decoder={"type": "Sequence", "decoders": [replace("a", "aaaa")] * 9}),
        "CheckpointError",
        "times as long",
    ),
    Case(
        "prepends",
        tokenizer(normalizer={"type": "Prepend", "prepend": "x" * 10**5}),
        "CheckpointError",
        "'Prepend' has a text of 100,000 characters",
    ),
    Case(
        "suffix",
        tokenizer(model={"end_of_word_suffix": "x" * 10**5}),
        "CheckpointError",
        "its model has a text of 100,000 characters",
    ),
    Case(
        "token-1MB",
        tokenizer(model={"vocab": {"a": 0, "b" * 10**6: 1}}),
        "CheckpointError",
        "a token has a text of 1,000,000 characters, and at most 2,048",
    ),
    Case(
        "added-1MB",
        tokenizer(added_tokens=[{"id": 30, "content": "x" * 10**6, "special": True}]),
        "CheckpointError",
        "an added token has a text of 1,000,000",
    ),
    Case(
        "merges-2.3M",
        tokenizer(model={"merges": ["a b"] * 2_300_000}),
        "CheckpointError",
        r"tokenizer\.json has [\d,]+ bytes, where at most",
    ),
    Case(
        "merges-400k",
        tokenizer(model={"merges": ["a b"] * 400_000}),
        "CheckpointError",
        "has 400,000 merges for 26 tokens, and at most 8 for each",
    ),
    Case(
        "values",
        written(TOKENIZER, "[" + "[]," * 1_000_000 + "[]]"),
        "CheckpointError",
        r"lists 2,000,002 values for a model of 320 tokens",
    ),
    Case(
        "many-steps",
        tokenizer(normalizer=steps(*[{"type": "NFC"}] * 100)),
        "CheckpointError",
        "it has 100 steps, and at most 64",
    ),
    Case(
        "backtracks",
        split("(x+x+)+y"),
        "CheckpointError",
        r"its pattern '\(x\+x\+\)\+y' repeats a part that varies",
    ),
    Case("backtracks-choice", split("(?:a|a)*b"), "CheckpointError", "repeats a part that varies"),
    Case(
        "backtracks-power",
        split("a*a*a*a*a*b"),
        "CheckpointError",
        r"its pattern 'a\*a\*a\*a\*a\*b' takes too long",
    ),
    Case("backtracks-reference", split(r"(a)\1*b"), "CheckpointError", "refers back to a part of itself"),
    Case(
        "backtracks-normalizer",
        tokenizer(normalizer=replace("(x+x+)+y", "", "Regex")),
        "CheckpointError",
        "repeats a part that varies",
    ),
    Case("no-pattern", split("(a"), "CheckpointError", NO_TOKENIZER),
    Case(
        "tokenizer-fifo",
        replaced(TOKENIZER, os.mkfifo),
        "CheckpointError",
        r"tokenizer\.json is no regular file",
    ),
    Case(
        "tokenizer-folder",
        replaced(TOKENIZER, os.mkdir),
        "CheckpointError",
        r"tokenizer\.json is no regular file",
    ),
    Case(
        "tokenizer-dangling",
        replaced(TOKENIZER, lambda p: p.symlink_to("nowhere")),
        "CheckpointError",
        "There is no tokenizer file",
    ),
    Case("tokenizer-deep", written(TOKENIZER, DEEP), "CheckpointError", NO_TOKENIZER),
    Case("tokenizer-list", written(TOKENIZER, "[]"), "CheckpointError", NO_TOKENIZER),
    Case(
        "charsmap",
        tokenizer(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAAAQ=="}),
        "CheckpointError",
        NO_TOKENIZER,
    ),
    Case(
        "settings-fifo", settings(os.mkfifo), "CheckpointError", r"tokenizer_config\.json is no regular file"
    ),
    Case("settings-list", settings("[]"), "CheckpointError", "holds no JSON object"),
    Case(
        "settings-bos",
        settings('{"bos_token": 5}'),
        "CheckpointError",
        "bos_token of tokenizer_config.json is 5",
    ),
    Case(
        "settings-adds",
        settings('{"add_bos_token": "no"}'),
        "CheckpointError",
        "is 'no'; it must be true, false or null",
    ),
]
