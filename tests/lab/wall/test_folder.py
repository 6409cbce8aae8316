"""A folder that thirty share at once, and all that may lie in it or be wrong with it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labcore.errors import LessonError
from labcore.lab import results as saved
from labcore.lab.wall.folder import MOST, MOST_BYTES, MOST_OF_OWNER, Folder, NotYours, WallFull
from tests.lab.wall.made import SECRET, entry

STEPS = st.tuples(st.sampled_from(["put", "remove"]), st.integers(0, 3), st.booleans())


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "class").mkdir()
    return Folder(tmp_path / "class")


@given(st.lists(STEPS, max_size=20))
def test_any_history_of_sharing_keeps_the_last_of_each(steps: list[tuple[str, int, bool]]) -> None:
    ids = [UUID(int=number + 1) for number in range(4)]
    with tempfile.TemporaryDirectory() as place:
        folder, model = Folder(Path(place)), dict[UUID, float]()
        for number, (step, who, is_owner) in enumerate(steps):
            before = folder.version()
            secret = SECRET if is_owner else "t" * 24
            if ids[who] in model and not is_owner:
                with pytest.raises(NotYours):
                    folder.put(entry(id=ids[who]), secret)
                with pytest.raises(NotYours):
                    folder.remove(ids[who], secret)
                assert folder.version() == before
            elif is_owner and step == "put":
                folder.put(entry(id=ids[who], speed=number + 1), SECRET)
                model[ids[who]] = number + 1
                assert folder.version() != before
            elif is_owner:
                assert folder.remove(ids[who], SECRET) == (model.pop(ids[who], None) is not None)
        found, faults = folder.entries()
        assert {one.id: one.speeds[0].tokens_per_s for one in found} == model
        assert faults == []


def test_thirty_share_at_once(folder: Folder) -> None:
    entries = [entry(f"learner {number}") for number in range(30)]
    with ThreadPoolExecutor(30) as pool:
        list(pool.map(lambda one: folder.put(one, SECRET), entries))
    found, faults = folder.entries()
    assert {one.id for one in found} == {one.id for one in entries}
    assert faults == []
    assert all(path.suffix == ".json" for path in folder.path.iterdir())  # no half file stays


def test_sharing_again_keeps_ones_place(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = entry("Ada"), entry("Ada")
    for number, one in enumerate((first, second, first)):
        monkeypatch.setattr("labcore.lab.wall.folder.now", lambda number=number: f"2026-01-0{number + 1}")
        folder.put(one, SECRET)
    assert [one.id for one in folder.entries()[0]] == [first.id, second.id]


def test_junk_in_the_folder_is_named_and_hides_nobody(folder: Folder) -> None:
    good = entry("Ada")
    folder.put(good, SECRET)
    texts = {"half": "{half", "list": "[]", "empty": "", "deep": "[" * 100_000, "none": '{"entry": {}}'}
    texts["long"] = json.dumps({"entry": "x" * MOST_BYTES})
    for name, text in texts.items():
        (folder.path / f"{name}.json").write_text(text, encoding="utf-8")
    (folder.path / "bytes.json").write_bytes(b"\xff\xfe")
    (folder.path / "folder.json").mkdir()
    (folder.path / "lost.json").symlink_to("nowhere")
    (folder.path / "link.json").symlink_to(folder.path / f"{good.id}.json")
    os.mkfifo(folder.path / "pipe.json")  # opening it would wait for ever
    shutil.copy(folder.path / f"{good.id}.json", folder.path / f"{uuid4()}.json")
    found, faults = folder.entries()
    assert [one.name for one in found] == ["Ada"]
    assert len(faults) == len(texts) + 6
    assert sum("is no entry (it is a link)" in fault for fault in faults) == 2
    assert all("is no entry (" in fault and str(folder.path) not in fault for fault in faults)
    assert folder.version()


def test_a_damaged_entry_is_not_replaced(folder: Folder) -> None:
    one = entry()
    (folder.path / f"{one.id}.json").write_text("{", encoding="utf-8")
    with pytest.raises(NotYours, match="is damaged; ask who runs the wall"):
        folder.put(one, SECRET)


def test_a_link_is_not_followed(folder: Folder, tmp_path: Path) -> None:
    """Whoever shows the wall may read more than whoever put the link there."""
    elsewhere, one = tmp_path / "elsewhere", entry("Ada")
    elsewhere.mkdir()
    Folder(elsewhere).put(one, SECRET)
    (folder.path / f"{one.id}.json").symlink_to(elsewhere / f"{one.id}.json")
    assert folder.entries() == ([], [f"{one.id}.json is no entry (it is a link) and is left out."])
    with pytest.raises(NotYours, match="is damaged"):
        folder.remove(one.id, SECRET)


def test_no_more_than_a_class_has(folder: Folder) -> None:
    mine = entry()
    folder.put(mine, SECRET)
    for number in range(MOST):
        (folder.path / f"{number}.json").touch()
    with pytest.raises(WallFull, match=f"holds {MOST} entries"):
        folder.put(entry(), SECRET)
    folder.put(mine, SECRET)  # who is there already may go on


def test_no_folder_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for place in (tmp_path / "nowhere", file, tmp_path / "x" / ("y" * 300)):
        with pytest.raises(
            LessonError, match="There is no class folder .*; check its name or mount it first"
        ):
            Folder(place).put(entry(), SECRET)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]  # nothing was made


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENOSPC, errno.EROFS])
def test_a_folder_that_refuses_or_is_full(folder: Folder, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    one = entry(speed=1.0)
    folder.put(one, SECRET)

    opened = os.open

    def refuse(*args: Any, **more: Any) -> Any:
        if code != errno.ENOSPC and not args[1] & os.O_CREAT:  # reading goes on
            return opened(*args, **more)
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(saved.os, "open" if code != errno.ENOSPC else "replace", refuse)
        with pytest.raises(LessonError, match=rf"could not be written \({os.strerror(code)}\)"):
            folder.put(entry(id=one.id, speed=2.0), SECRET)
    assert [path.name for path in folder.path.iterdir()] == [f"{one.id}.json"]
    assert folder.entries()[0][0].speeds[0].tokens_per_s == 1.0


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root makes files of others")
def test_one_user_of_the_machine_does_not_fill_the_wall(folder: Folder) -> None:
    for number in range(MOST):
        path = folder.path / f"flood-{number}.json"
        path.touch()
        os.chown(path, 70_001, 70_001)
    folder.put(entry("Ada"), SECRET)
    found, faults = folder.entries()
    assert [one.name for one in found] == ["Ada"]
    assert len(faults) == MOST_OF_OWNER
