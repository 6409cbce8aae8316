"""Crafted GGUF files: what a short file can claim; and the sentence for each."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.model.crafted import Case

U32, F32, TEXT, LIST, U64 = 4, 6, 8, 9, 10


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(kind: int, value: Any) -> bytes:
    if kind == TEXT:
        return _text(value)
    return value if kind == LIST else struct.pack({U32: "<I", F32: "<f", U64: "<Q"}[kind], value)


GOOD: dict[str, tuple[int, Any]] = {
    "general.architecture": (TEXT, "llama"),
    "llama.embedding_length": (U32, 8),
    "llama.block_count": (U32, 1),
    "llama.feed_forward_length": (U32, 8),
    "llama.attention.head_count": (U32, 2),
    "llama.attention.layer_norm_rms_epsilon": (F32, 1e-6),
    "llama.context_length": (U32, 64),
}
ONE = [("token_embd.weight", (8, 16), 0, 0), ("blk.0.attn_norm.weight", (8,), 0, 512)]


def gguf(
    values: dict[str, tuple[int, Any]] | None = None,
    tensors: list[tuple[str, tuple[int, ...], int, int]] = ONE,
    counts: tuple[int, int] | None = None,
    body: int = 1024,
) -> Callable[[Path], Path]:
    """A file of GOOD metadata with some changed. tensors: (name, sizes, type, offset). counts: claimed."""

    def spoil(folder: Path) -> Path:
        entries = GOOD | (values or {})
        claimed = (len(tensors), len(entries)) if counts is None else counts
        parts = [b"GGUF", struct.pack("<IQQ", 3, *claimed)]
        parts += [
            _text(key) + struct.pack("<I", kind) + _value(kind, value)
            for key, (kind, value) in entries.items()
        ]
        for name, sizes, kind, offset in tensors:
            parts.append(_text(name) + struct.pack("<I", len(sizes)) + struct.pack(f"<{len(sizes)}Q", *sizes))
            parts.append(struct.pack("<IQ", kind, offset))
        table = b"".join(parts)
        path = folder / "x.gguf"
        path.write_bytes(table + b"\0" * (-len(table) % 32 + body))
        return path

    return spoil


def listed(kind: int, count: int, rest: bytes = b"") -> tuple[int, bytes]:
    return LIST, struct.pack("<IQ", kind, count) + rest


NO_GGUF = r"x\.gguf \([\d,]+ bytes\) is no GGUF file, or cut short \(.*"


def _gguf_of(content: bytes) -> Callable[[Path], Path]:
    def spoil(folder: Path) -> Path:
        (folder / "x.gguf").write_bytes(content)
        return folder / "x.gguf"

    return spoil


GGUFS = [
    Case(
        "gguf-40-bytes",
        _gguf_of(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + _text("a") + struct.pack("<IIQ", LIST, U32, 2**40)),
        "CheckpointError",
        NO_GGUF + "4,398,046,511,104 bytes are claimed",
    ),
    Case(
        "gguf-list-of-texts",
        gguf({"x": listed(TEXT, 2**40)}),
        "CheckpointError",
        NO_GGUF + r"its lists claim 1,099,511,627,776 texts",
    ),
    Case(
        "gguf-short-texts",
        gguf({"x": listed(TEXT, 10**6)}),
        "CheckpointError",
        NO_GGUF + "a list of 1,000,000 texts goes beyond its end",
    ),
    Case(
        "gguf-lists-in-lists",
        gguf({"x": listed(LIST, 1, struct.pack("<IQ", LIST, 1) * 50)}),
        "CheckpointError",
        NO_GGUF + "a list of kind 9",
    ),
    Case(
        "gguf-list-of-nothing", gguf({"x": listed(77, 1)}), "CheckpointError", NO_GGUF + "a list of kind 77"
    ),
    Case(
        "gguf-layers-2^31",
        gguf({"llama.block_count": (U32, 2**31)}),
        "ConfigError",
        r"The metadata of x\.gguf cannot be run: num_hidden_layers is 2147483648",
    ),
    Case(
        "gguf-layers-2000",
        gguf({"llama.block_count": (U32, 2000)}),
        "CheckpointError",
        "asks for 2,000 layers and its files hold 1",
    ),
    Case("gguf-no-tensors", gguf(tensors=[]), "CheckpointError", r"holds no matrix token_embd\.weight"),
    Case(
        "gguf-vector",
        gguf(tensors=[("token_embd.weight", (8,), 0, 0)]),
        "CheckpointError",
        r"holds no matrix token_embd\.weight",
    ),
    Case(
        "gguf-heads-0",
        gguf({"llama.attention.head_count": (U32, 0)}),
        "ConfigError",
        "num_attention_heads is 0",
    ),
    Case(
        "gguf-text-for-number",
        gguf({"llama.embedding_length": (TEXT, "8")}),
        "ConfigError",
        "hidden_size is '8', of the wrong kind",
    ),
    Case(
        "gguf-list-for-number",
        gguf({"llama.attention.head_count": listed(U32, 2, b"\0" * 8)}),
        "ConfigError",
        "num_attention_heads is .*of the wrong kind",
    ),
    Case(
        "gguf-number-for-text", gguf({"general.architecture": (U32, 5)}), "CheckpointError", "architecture 5"
    ),
    Case(
        "gguf-eps-nan",
        gguf({"llama.attention.layer_norm_rms_epsilon": (F32, float("nan"))}),
        "ConfigError",
        "rms_norm_eps is nan",
    ),
    Case(
        "gguf-tensors-2^60",
        gguf(counts=(2**60, 7)),
        "CheckpointError",
        NO_GGUF + "claims 1,152,921,504,606,846,976 tensors",
    ),
    Case("gguf-entries-2^60", gguf(counts=(2, 2**60)), "CheckpointError", NO_GGUF + "entries of metadata"),
    Case("gguf-entries-more", gguf(counts=(2, 60_000)), "CheckpointError", NO_GGUF),
    Case(
        "gguf-dimensions",
        gguf(tensors=[("token_embd.weight", (1,) * 9, 0, 0)]),
        "CheckpointError",
        NO_GGUF + "has 9 dimensions",
    ),
    Case(
        "gguf-size-0",
        gguf(tensors=[("token_embd.weight", (8, 0), 0, 0)]),
        "CheckpointError",
        NO_GGUF + "which F32 cannot store",
    ),
    Case(
        "gguf-size-2^62",
        gguf(tensors=[("token_embd.weight", (2**62, 2**62), 0, 0)]),
        "CheckpointError",
        NO_GGUF + "claims [0-9,]+ bytes from byte",
    ),
    Case(
        "gguf-offset",
        gguf(tensors=[("token_embd.weight", (8, 16), 0, 2**63)]),
        "CheckpointError",
        NO_GGUF + "claims 512 bytes from byte",
    ),
    Case(
        "gguf-overlap",
        gguf(tensors=[ONE[0], ("blk.0.attn_norm.weight", (8,), 0, 256)]),
        "CheckpointError",
        NO_GGUF + "lies over the tensor before it",
    ),
    Case(
        "gguf-twice", gguf(tensors=[ONE[0], ONE[0]]), "CheckpointError", NO_GGUF + "'token_embd.weight' twice"
    ),
    Case(
        "gguf-type",
        gguf(tensors=[("token_embd.weight", (8, 16), 999, 0)]),
        "CheckpointError",
        NO_GGUF + "tensors of type 999",
    ),
    Case(
        "gguf-alignment",
        gguf({"general.alignment": (U32, 0)}),
        "CheckpointError",
        NO_GGUF + "its alignment is 0",
    ),
    Case("gguf-incomplete", gguf(), "CheckpointError", "lacks (model|output_norm)"),
    Case("gguf-nothing", _gguf_of(b""), "CheckpointError", NO_GGUF),
    Case(
        "gguf-rotated",
        gguf({"llama.rope.dimension_count": (U32, 2)}),
        "CheckpointError",
        "rotates 2 of each head's 4 numbers",
    ),
]
