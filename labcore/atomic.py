"""Files that are complete or not there: what is written lies beside its place first, and then takes it."""

from __future__ import annotations

import glob
import os
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from labcore.errors import LabError

PART = ".part"  # ends the name of what is being written
STALE_S = 3600.0  # whoever writes has written something within so many seconds


@contextmanager
def replacing(path: Path, *, private: bool = False) -> Iterator[Path]:
    """A new, empty file beside `path` to be written; it takes the place of `path` when the block ends well.

    A reader sees the old file or the new one, never half of it. Every writer has a file of its own, so that
    two processes may write the same `path`. Folders on the way are made. private: only the user may read it.
    Raises OSError where the disk is full or the folder refuses; `path` is then as it was and nothing is left
    beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = beside(path)
    try:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666))
        mode = stat.S_IMODE(part.stat().st_mode)
        yield part
        part.chmod(mode)  # a library that makes the file anew may have written it for its owner alone
        os.replace(part, path)
    finally:
        with suppress(OSError):  # it was moved, or could not be made
            part.unlink()


def write_text(path: Path, text: str, *, private: bool = False) -> Path:
    """Write a text file in UTF-8, as `replacing` does. Raises OSError."""
    with replacing(path, private=private) as part:
        part.write_text(text, encoding="utf-8")
    return path


def beside(path: Path) -> Path:
    """A name next to `path` that nobody else uses, for what will take its place: a file or a folder."""
    _clear(path)
    return path.with_name(f".{path.name[:200]}.{uuid.uuid4().hex[:12]}{PART}")


def _clear(path: Path) -> None:
    """Remove what writers of this file that were killed have left."""
    for name in glob.glob(f".{glob.escape(path.name[:200])}.*{PART}", root_dir=path.parent):
        part = path.with_name(name)
        with suppress(OSError):
            if time.time() - part.lstat().st_mtime < STALE_S:
                continue
            if part.is_dir() and not part.is_symlink():
                shutil.rmtree(part)
            else:
                part.unlink()


def ensure_writable(path: Path, room: int = 16 << 20) -> None:
    """Raises LabError where no file of `room` bytes could be written to `path`: to be asked before long work.

    Writes nothing that stays, and makes no folder.
    """
    if path.exists() and not path.is_file():
        raise LabError(f"{path} is a folder or a device, and no file can take its place; name a file.")
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        raise LabError(
            f"{path} cannot be written ({error.strerror or error}: {folder}); choose another folder."
        ) from None
    if free < room:
        raise LabError(
            f"{path} cannot be written: {free / 1e6:.1f} MB are free on the disk of {folder}, and "
            f"{room / 1e6:.1f} MB should be; free some space, or choose another folder."
        )
