"""Files that are complete or not there, whoever else writes them and whatever ends the writing."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import zeros

from labcore import atomic


def test_a_file_is_replaced_complete(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    atomic.write_text(path, "old")
    with atomic.replacing(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_writer_that_fails_leaves_what_was_there(tmp_path: Path, error: BaseException) -> None:
    path = atomic.write_text(tmp_path / "file.txt", "old")

    def fail() -> None:
        with atomic.replacing(path) as part:
            part.write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    with atomic.replacing(path) as first:
        first.write_text("first")
        with atomic.replacing(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"


def test_what_killed_writers_left_is_removed_and_what_others_write_is_not(tmp_path: Path) -> None:
    path = tmp_path / "file[1].txt"
    left, folder, busy = (atomic.beside(path) for _ in range(3))
    left.write_text("half")
    folder.mkdir()
    other = atomic.beside(tmp_path / "other.txt")
    for one in (busy, other):
        one.write_text("half")
    long_ago = time.time() - 2 * atomic.STALE_S
    for one in (left, folder, other):
        os.utime(one, (long_ago, long_ago))
    atomic.write_text(path, "new")
    assert set(tmp_path.iterdir()) == {path, busy, other}


def test_who_may_read_is_what_a_plain_file_allows(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    with atomic.replacing(tmp_path / "weights") as part:
        save_file({"a": zeros(1)}, part)  # it would leave a file for its owner alone
    mode = stat.S_IMODE(plain.stat().st_mode)
    assert stat.S_IMODE((tmp_path / "weights").stat().st_mode) == mode
    private = atomic.write_text(tmp_path / "private", "", private=True)
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
