"""JSON files of a model folder, read in bounded time and memory, whoever wrote the folder.

Only a regular file is opened for reading (a FIFO or a device would never end), of a bounded size; what it
holds is an object of bounded depth, in the JSON of the standard (no NaN, no Infinity).
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

from labcore.errors import CheckpointError, LabError

MOST_BYTES = 4 << 20  # parsed, so many bytes of the densest JSON take about 100 MB
MOST_PARTS = 100_000  # objects and lists; each takes far more time and memory than a number
DEEPEST = 64  # of them inside of each other


def read_object(path: Path, *, error: type[LabError] = CheckpointError) -> dict[str, Any]:
    """The object in a file of at most MOST_BYTES.

    Raises FileNotFoundError where there is no such file, and `error` for one that is no regular file, too
    large, too deep or no JSON object.
    """
    return parse_object(read_bytes(path, MOST_BYTES, error=error), path, error=error)


def read_bytes(path: Path, most: int, *, error: type[LabError] = CheckpointError) -> bytes:
    """A regular file of at most `most` bytes. Raises FileNotFoundError, and `error` for any other file."""
    # Without O_NONBLOCK, opening a FIFO waits for somebody who writes into it.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
            about = os.fstat(file.fileno())
            if stat.S_ISREG(about.st_mode) and about.st_size <= most:
                return file.read(most)
    except FileNotFoundError:
        raise
    except IsADirectoryError:
        about = path.stat()
    except OSError as problem:
        raise error(
            f"{path} cannot be read ({problem.strerror}); make it readable, or fetch it again."
        ) from None
    if stat.S_ISREG(about.st_mode):
        raise error(
            f"{path} has {about.st_size:,} bytes, where at most {most:,} are read; it is no such file, so "
            "fetch it again."
        )
    raise error(f"{path} is no regular file; put the file itself there.")


def parse_object(content: bytes, path: Path, *, error: type[LabError] = CheckpointError) -> dict[str, Any]:
    """The JSON object that the bytes of file `path` are. Raises `error` where they are none."""
    if (parts := content.count(b"{") + content.count(b"[")) > MOST_PARTS:
        raise error(
            f"{path} has {parts:,} objects and lists, and at most {MOST_PARTS:,} are read; "
            "fetch the file again."
        )
    try:
        found = json.loads(content, parse_constant=_refuse_constant)
    except RecursionError:
        raise error(_too_deep(path)) from None
    except ValueError as problem:  # what json raises, and what decoding raises
        raise error(f"{path} is not valid JSON ({problem}); fetch the file again.") from None
    if not isinstance(found, dict):
        raise error(f"{path} holds no JSON object; fetch the file again.")
    if _deeper(found, DEEPEST):
        raise error(_too_deep(path))
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}, which JSON has no word for")


def _too_deep(path: Path) -> str:
    return (
        f"{path} nests objects and lists more than {DEEPEST} deep, which no model's file does; "
        "fetch the file again."
    )


def _deeper(value: object, most: int) -> bool:
    """Whether anything lies below `most` levels; level by level, as recursion has a limit of its own."""
    level: list[Any] = [value]
    for _ in range(most):
        inner = (part for one in level for part in (one.values() if isinstance(one, dict) else one))
        level = [part for part in inner if isinstance(part, dict | list)]
        if not level:
            return False
    return True
