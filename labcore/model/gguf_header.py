"""The front part of a GGUF file: its metadata and its table of tensors, read in bounded time and memory.

Every count, length and offset is held against the bytes that are left before it is followed, so that a short
file cannot claim a long list. Lists (a vocabulary, say) are stepped over: nothing here needs what is in them.
(The gguf library's reader makes Python objects of each element, which takes hundreds of bytes for one.)
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

MOST_ENTRIES = 65_536  # of metadata, and of tensors
MOST_TEXTS = 2_000_000  # in all lists; a vocabulary of 262,144 tokens comes with about 800,000
MOST_TEXT = 1 << 20  # bytes of one text outside of lists; the longest is a chat template
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9


class Listed(NamedTuple):
    """Stands for a list that was stepped over."""

    length: int


class StoredTensor(NamedTuple):
    """One tensor as the table states it: `nbytes` from byte `start` of the file on. shape: rows first."""

    kind: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """values: metadata by key. tensors: by name."""

    values: dict[str, Any]
    tensors: dict[str, StoredTensor]


# Of a numeric type: its name, and weights and bytes of a block. Raises ValueError for an unknown one.
KindOf = Callable[[int], tuple[str, int, int]]


def read_header(data: memoryview, kind_of: KindOf) -> Header:
    """data: the whole file, mapped. Raises ValueError that says what is wrong with it."""
    cursor = _Cursor(data)
    if bytes(cursor.take(4)) != b"GGUF":
        raise ValueError("it does not begin with 'GGUF'")
    if (version := cursor.number("I")) not in (2, 3):
        raise ValueError(f"it says version {version}, and versions 2 and 3 in little-endian order are read")
    tensors, entries = cursor.number("Q"), cursor.number("Q")
    for count, what in ((tensors, "tensors"), (entries, "entries of metadata")):
        if count > MOST_ENTRIES:
            raise ValueError(f"it claims {count:,} {what}, and at most {MOST_ENTRIES:,} are read")
    values: dict[str, Any] = {}
    for _ in range(entries):
        key = cursor.text()
        if key in values:
            raise ValueError(f"its metadata has {key[:60]!r} twice")
        values[key] = cursor.value(cursor.number("I"))
    table = [_entry(cursor) for _ in range(tensors)]
    return Header(values, _placed(table, _data_start(values, cursor.at), len(data), kind_of))


class _Cursor:
    """A place in the file that moves forward, never past its end."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.at, self.texts = data, 0, 0

    def take(self, count: int) -> memoryview:
        left = len(self.data) - self.at
        if count > left:
            raise ValueError(f"{count:,} bytes are claimed at byte {self.at:,}, where {left:,} are left")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self) -> str:
        length = self.number("Q")
        if length > MOST_TEXT:
            raise ValueError(f"it claims a text of {length:,} bytes, and at most {MOST_TEXT:,} are read")
        return bytes(self.take(length)).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _TEXT:
            return self.text()
        if kind == _LIST:
            return self._step_over()
        raise ValueError(f"it has metadata of kind {kind}, which GGUF does not have")

    def _step_over(self) -> Listed:
        kind, count = self.number("I"), self.number("Q")
        if kind in _SCALARS:
            self.take(count * struct.calcsize("<" + _SCALARS[kind]))
            return Listed(count)
        if kind != _TEXT:
            raise ValueError(f"it has a list of kind {kind}; lists of numbers and of texts are read")
        self.texts += count
        if self.texts > MOST_TEXTS:
            raise ValueError(f"its lists claim {self.texts:,} texts, and at most {MOST_TEXTS:,} are read")
        length_at, at, end = struct.Struct("<Q").unpack_from, self.at, len(self.data)
        for _ in range(count):
            if at + 8 > end:
                break
            at += 8 + length_at(self.data, at)[0]
        else:
            self.take(at - self.at)
            return Listed(count)
        raise ValueError(f"a list of {count:,} texts goes beyond its end")


def _entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """(name, rows first, kind, offset) of one line of the table."""
    name, count = cursor.text(), cursor.number("I")
    if not 1 <= count <= 4:
        raise ValueError(f"{name[:60]!r} has {count:,} dimensions, and a tensor has 1 to 4")
    sizes = tuple(cursor.number("Q") for _ in range(count))
    return name, sizes[::-1], cursor.number("I"), cursor.number("Q")


def _data_start(values: dict[str, Any], end: int) -> int:
    """Where the numbers begin: behind the table, aligned."""
    aligned = values.get("general.alignment", 32)
    if not isinstance(aligned, int) or not 1 <= aligned <= 1 << 20 or aligned & (aligned - 1):
        raise ValueError(f"its alignment is {str(aligned)[:60]}, and it must be a power of 2 up to 1,048,576")
    return -(-end // aligned) * aligned


def _placed(
    table: list[tuple[str, tuple[int, ...], int, int]], start: int, end: int, kind_of: KindOf
) -> dict[str, StoredTensor]:
    """The table by name, each tensor within the file, no two in the same place."""
    found: dict[str, StoredTensor] = {}
    for name, shape, raw, offset in table:
        kind, weights, size = kind_of(raw)
        if min(shape) < 1 or shape[-1] % weights:
            raise ValueError(f"{name[:60]!r} has shape {list(shape)}, which {kind} cannot store")
        nbytes = math.prod(shape) // weights * size
        if name in found:
            raise ValueError(f"its table has {name[:60]!r} twice")
        if start + offset + nbytes > end:
            raise ValueError(
                f"{name[:60]!r} claims {nbytes:,} bytes from byte {start + offset:,} on, and the file "
                f"has {end:,}"
            )
        found[name] = StoredTensor(kind, shape, start + offset, nbytes)
    before = start
    for name, tensor in sorted(found.items(), key=lambda item: item[1].start):
        if tensor.start < before:
            raise ValueError(f"{name[:60]!r} lies over the tensor before it")
        before = tensor.start + tensor.nbytes
    return found
