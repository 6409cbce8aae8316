"""Files that are whole or not there: checksums, atomic copies, and the room on a disk."""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from labcore import atomic
from labcore.errors import KitError

PART = atomic.PART  # what is being written; never counted as a file of a kit
_FULL = (errno.ENOSPC, errno.EDQUOT)


def digest(path: Path) -> str:
    """SHA-256 of a file, in hex. Raises OSError where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_right(path: Path, sha256: str) -> bool:
    """Whether a file is there with this content."""
    return path.is_file() and digest(path) == sha256


def write_whole(path: Path, text: str) -> None:
    """Write a text file, all of it or none."""
    atomic.write_text(path, text)


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file's content, all of it or none; folders on the way are made."""
    with atomic.replacing(target) as part:
        shutil.copyfile(source, part)


def ensure_inside(target: Path, root: Path) -> None:
    """Raises KitError where a link on the way from a folder to a file leads out of the folder."""
    folder = target.parent.resolve()
    if not folder.is_relative_to(root.resolve()):
        raise KitError(
            f"{target} would be written to {folder}, outside of {root}, because of a link on the way; remove "
            "the link, or choose another folder."
        )


def room(folder: Path) -> int:
    """Free bytes on the disk of a folder, which need not exist yet."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def need_room(folder: Path, nbytes: int, what: str) -> None:
    """Raises KitError where a folder's disk has less room than that."""
    if (free := room(folder)) < nbytes:
        raise KitError(
            f"{what} needs {megabytes(nbytes)} on the disk of {folder} and {megabytes(free)} are free; free "
            f"{megabytes(nbytes - free)} there, or choose a folder on another disk."
        )


@contextmanager
def full_disk_is_an_error(folder: Path) -> Iterator[None]:
    """Says in a sentence that the disk filled up, or that the folder may not be written."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise full_disk(folder) from error
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            raise KitError(
                f"{error.filename or folder} may not be written; choose another folder."
            ) from error
        raise


def full_disk(folder: Path) -> KitError:
    """The sentence for a disk that filled up in the middle."""
    return KitError(
        f"The disk of {folder} is full ({megabytes(room(folder))} free); what was there before is untouched "
        "and what is done stays done: free some space and run the same command again."
    )


def megabytes(nbytes: int) -> str:
    """A size for people: MB below a GB (1 MB = 1e6 bytes)."""
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:,.1f} MB"
