"""Reading a tokenizer.json that nobody vouches for: bounded before it is parsed, and tried before it serves.

The file is a program for texts: it splits them by regular expressions and replaces parts by others. A few of
its lines can make a letter megabytes long, or a line of text take hours. What no tokenizer needs is refused.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import pre_tokenizers

from labcore.errors import CheckpointError, LabError
from labcore.json_file import read_bytes

# Of a file for so many tokens. Llama 3's has 134 bytes and 9 values for each of its 128,256 tokens.
_USUAL_TOKENS = 300_000
_BYTES, _BYTES_EACH, _BYTES_MOST = 4 << 20, 512, 64 << 20
_VALUES, _VALUES_EACH = 500_000, 16
_MERGES_EACH = 8  # merges of a token; Llama 3 has 2.2, as a token can be put together in several ways

_PIECE = 2_048  # characters of a token
_TEXT = 100  # of what is put before, behind or in place of a part of the text
_PATTERN = 10_000  # of a regular expression; DeepSeek's lists its letters in 2,500
_CHARSMAP = 2 << 20  # of SentencePiece's table of characters; XLM-R's has 320,000
_PARTS = 64  # steps of all kinds
_GROWTH = 64  # times that the steps together may lengthen a text

# Characters; in small steps, so that what grows with a high power of them is stopped early.
_PROBES_LONG = (16, 24, 36, 54, 81, 128, 256, 1_024, 8_192)
_PROBE_S = 0.05  # of this thread's own time for one; of ordinary patterns the longest takes 2 ms
_TRIES = 3  # before it is judged slow: another program may have had the core's caches
_RUNS = "a1 \n.é"


def is_panic(error: BaseException) -> bool:
    """Whether the library's own code failed: such an exception passes `except Exception`."""
    return type(error).__name__ == "PanicException"


def explained(error: BaseException, kind: type[LabError], sentence: str) -> BaseException:
    """What to raise for an error of the library: `kind`, with {} in the sentence for the reason.

    What is none of its errors (a KeyboardInterrupt, say) stays what it is.
    """
    if isinstance(error, LabError) or not (isinstance(error, Exception) or is_panic(error)):
        return error
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return kind(sentence.format(reason[:200].rstrip(".")))


def read_tokenizer(path: Path, tokens: int | None = None) -> tokenizers.Tokenizer:
    """The library's tokenizer of a tokenizer.json. tokens: how many the model knows, where that is known.

    Raises FileNotFoundError, and CheckpointError for a file that is no tokenizer, or none that one can use.
    """
    tokens = tokens or _USUAL_TOKENS
    content = read_bytes(path, min(_BYTES + _BYTES_EACH * tokens, _BYTES_MOST))
    values = sum(content.count(sign) for sign in (b",", b"[", b"{"))
    if values > _VALUES + _VALUES_EACH * tokens:
        raise CheckpointError(
            f"{path} lists {values:,} values for a model of {tokens:,} tokens, and at most "
            f"{_VALUES + _VALUES_EACH * tokens:,} are read; fetch the file again."
        )
    no_tokenizer = f"{path} is not a tokenizer ({{}}); fetch the file again."
    try:
        _ensure_usable(json.loads(content))
        return tokenizers.Tokenizer.from_buffer(content)
    except _Unusable as error:
        raise CheckpointError(f"{path} cannot be used: {error}; fetch the file again.") from None
    except BaseException as error:
        raise explained(error, CheckpointError, no_tokenizer) from None


class _Unusable(Exception):
    """Why."""


def _ensure_usable(data: Any) -> None:
    """Raises _Unusable for what no tokenizer needs; what the library refuses itself is left to it."""
    if not isinstance(data, dict):
        raise ValueError("it holds no JSON object")
    _ensure_sizes(data)
    steps = [list(_steps(data.get(part))) for part in ("normalizer", "pre_tokenizer", "decoder")]
    if (count := sum(map(len, steps))) > _PARTS:
        raise _Unusable(f"it has {count:,} steps, and at most {_PARTS} are taken")
    for part in steps:
        growth = math.prod(map(_growth, part))
        if growth > _GROWTH:
            raise _Unusable(
                f"its steps make a text {growth:,.0f} times as long, and at most {_GROWTH} are taken"
            )
    for pattern in {pattern for part in steps for one in part if (pattern := _regex(one)) is not None}:
        _ensure_quick(pattern)


def _ensure_sizes(data: dict[str, Any]) -> None:
    model = data.get("model")
    if isinstance(model, dict):
        vocab, merges = model.get("vocab"), model.get("merges")
        pieces = (
            vocab
            if isinstance(vocab, dict)
            else [one[0] for one in vocab or () if isinstance(one, list) and one]
        )
        _ensure_short("a token", (piece for piece in pieces if isinstance(piece, str)), _PIECE)
        if isinstance(merges, list) and len(merges) > _MERGES_EACH * len(pieces) + 1_000:
            raise _Unusable(
                f"it has {len(merges):,} merges for {len(pieces):,} tokens, and at most {_MERGES_EACH} for "
                "each are taken"
            )
        _ensure_short(
            "its model", _texts({k: v for k, v in model.items() if k not in ("vocab", "merges")}), _TEXT
        )
    added = data.get("added_tokens")
    _ensure_short("an added token", _texts(added), _PIECE)
    _ensure_short(
        "a step", _texts([data.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")]), None
    )


def _ensure_short(what: str, texts: Iterator[str], most: int | None) -> None:
    """most: characters; None: patterns and tables of characters, whose keys are looked at, have their own."""
    longest = max(map(len, texts), default=0)
    limit = _CHARSMAP if most is None else most
    if longest > limit:
        raise _Unusable(f"{what} has a text of {longest:,} characters, and at most {limit:,} are taken")


def _texts(value: Any) -> Iterator[str]:
    """All texts in nested lists and objects, keys left out. Not recursive: depth is the file's choice."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict | list):
            waiting.extend(one.values() if isinstance(one, dict) else one)


def _steps(value: Any) -> Iterator[dict[str, Any]]:
    """All steps of a normalizer, pre-tokenizer or decoder, those inside of sequences one by one."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            if isinstance(one.get("type"), str) and one["type"] != "Sequence":
                yield one
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)


def _growth(step: dict[str, Any]) -> float:
    """How many times as long a text may be behind this step."""
    for key, value in step.items():
        limit = {"precompiled_charsmap": _CHARSMAP, "pattern": _PATTERN}.get(key, _TEXT)
        _ensure_short(f"its step {step['type'][:40]!r}", _texts(value), limit)
    if step["type"] == "ByteLevel":
        return 2  # a byte becomes a character, of up to two bytes
    content, pattern = step.get("content"), step.get("pattern")
    if step["type"] != "Replace" or not isinstance(content, str):
        return 1
    plain = pattern.get("String") if isinstance(pattern, dict) else None
    replaced = len(plain) if isinstance(plain, str) else 0
    return max(1.0, len(content) / replaced) if replaced else 1.0 + len(content)


def _regex(step: dict[str, Any]) -> str | None:
    pattern = step.get("pattern")
    found = pattern.get("Regex") if isinstance(pattern, dict) else None
    return found if isinstance(found, str) else None


# Regular expressions


def _ensure_quick(pattern: str) -> None:
    """Raises _Unusable for a pattern that could take a long time for a short text.

    What repeats a choice, or a part that itself varies in length, can try exponentially many ways, though
    perhaps only for a text that nobody would guess: it is refused as it stands. What takes a power of the
    length is found by trying: on runs of each kind of character, and of those that the pattern names.
    """
    shown = ascii(pattern[:60])
    if (reason := _repeats(pattern)) is not None:
        raise _Unusable(f"its pattern {shown} {reason}, which can take hours for a line of text")
    own = [character for character in dict.fromkeys(re.sub(r"\\.", "", pattern)) if character.isalnum()][:5]
    # The library first looks for the characters that a pattern cannot do without; so they are there.
    tail = "\0\n" + "".join(dict.fromkeys(pattern))[:200]
    runs = list(dict.fromkeys([*_RUNS, *own]))
    splitter = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    for length in _PROBES_LONG:
        for character in runs:
            text = character * length + tail
            if all(_slow(splitter, text) for _ in range(_TRIES)):
                raise _Unusable(f"its pattern {shown} takes too long for {length:,} times {character!a}")


def _slow(splitter: pre_tokenizers.Split, text: str) -> bool:
    begun = time.thread_time()
    try:
        splitter.pre_tokenize_str(text)
    except BaseException as error:
        if not is_panic(error):
            raise
        return True  # the library's own limit of tries
    return time.thread_time() - begun > _PROBE_S


_REPEAT = re.compile(r"[*+]|\{(\d*)(?:,(\d*))?\}")


def _repeats(pattern: str) -> str | None:
    """Why a pattern may try exponentially many ways, judged by its writing; None: it does not.

    groups: of each open one, whether it holds a choice or varies in length.
    """
    groups, at = [False], 0
    while at < len(pattern):
        sign = pattern[at]
        if sign == "\\":
            if re.match(r"\\[1-9kg]", pattern[at:]):
                return "refers back to a part of itself"
            at += 2
        elif sign == "[":
            at = _class_end(pattern, at)
        elif sign == "(":
            opening = re.match(r"\(\?(?:<?[=!]|[:>~|#(&]|<\w+>|[imsxWDSPy-]*[:)])?", pattern[at:])
            if opening and ("x" in opening[0] or opening[0][-1] in "?#~|(&"):
                return f"has a group {opening[0]!a} that labcore does not judge"
            if not (opening and opening[0].endswith(")")):  # "(?i)" opens nothing
                groups.append(False)
            at += len(opening[0]) if opening else 1
        elif sign == ")" and len(groups) > 1:
            varied, at = groups.pop(), at + 1
            again = _REPEAT.match(pattern, at)
            if varied and again and again[0] not in ("{1}", "{0,1}", "{,1}"):
                return "repeats a part that varies"
            groups[-1] = groups[-1] or varied
        else:
            again = _REPEAT.match(pattern, at)
            varies = sign in "*+?|" or (again is not None and not again[0][1:-1].isdigit())
            groups[-1] = groups[-1] or varies
            at += 1
    return None


def _class_end(pattern: str, at: int) -> int:
    """Where the class that opens at `at` ends; classes lie inside of each other."""
    depth, at = 1, at + 1
    at += pattern.startswith("^", at)
    at += pattern.startswith("]", at)  # the first one stands for itself
    while at < len(pattern) and depth:
        if pattern[at] == "\\":
            at += 1
        elif pattern[at] in "[]":
            depth += 1 if pattern[at] == "[" else -1
        at += 1
    return at
