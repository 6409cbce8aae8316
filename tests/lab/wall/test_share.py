"""Sharing and taking back, with folders that come and go: nothing is lost, nothing is sent twice."""

from __future__ import annotations

import shutil
import socket
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from labcore.cli import app
from labcore.errors import LessonError
from labcore.lab.results import folder as results_folder
from labcore.lab.wall import notebook
from labcore.lab.wall import share as sharing
from labcore.lab.wall.folder import Folder
from labcore.lab.wall.membership import find, join, path
from tests.lab.wall.made import entry, run_a_lesson

STEPS = st.tuples(st.sampled_from(["share", "withdraw", "unmount", "mount"]), st.integers(0, 1))


@given(st.lists(STEPS, max_size=15))
def test_any_history_with_folders_that_come_and_go(steps: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patched:
        patched.setenv("LABCORE_RESULTS", f"{place}/results")
        there = [Path(place, name) for name in ("a", "b")]
        away = [Path(place, name) for name in ("a-away", "b-away")]
        for one in there:
            one.mkdir()
        on_wall: list[float | None] = [None, None]
        waiting: list[float | None] = [None, None]
        for number, (step, which) in enumerate(steps, 1):
            to, mounted = there[which], there[which].is_dir()
            if step == "unmount" and mounted:
                to.rename(away[which])
            elif step == "mount" and not mounted:
                away[which].rename(to)
            elif step == "share":
                me = join(str(to))
                waiting[which] = float(number)
                if mounted:
                    sharing.share(entry(id=me.id, speed=number), me)
                    for other in (0, 1):
                        if there[other].is_dir() and waiting[other] is not None:
                            on_wall[other], waiting[other] = waiting[other], None
                else:
                    with pytest.raises(
                        LessonError, match="your entry waits here, and the next share sends it"
                    ):
                        sharing.share(entry(id=me.id, speed=number), me)
            elif step == "withdraw":
                waiting[which] = None
                if mounted:
                    assert sharing.withdraw(str(to)) == (on_wall[which] is not None)
                    on_wall[which] = None
                elif find(str(to)):
                    with pytest.raises(LessonError, match="There is no class folder"):
                        sharing.withdraw(str(to))
        for which in (0, 1):
            if not there[which].is_dir():
                away[which].rename(there[which])
            speeds = [one.speeds[0].tokens_per_s for one in sharing.read(str(there[which]))[0]]
            assert speeds == [on_wall[which]] * (on_wall[which] is not None)
            me = find(str(there[which]))
            assert (me.pending.speeds[0].tokens_per_s if me and me.pending else None) == waiting[which]


def test_a_class_server_s_folder_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LessonError, match="belongs to no class server"):
        notebook.wall()
    monkeypatch.setenv("LABCORE_CLASS_FOLDER", str(tmp_path))
    with pytest.raises(LessonError, match=f"Nobody has shared anything with {tmp_path} yet"):
        notebook.wall()
    run_a_lesson()
    assert CliRunner().invoke(app, ["wall", "share", "--yes"]).exit_code == 0
    assert len(Folder(tmp_path).entries()[0]) == 1


def test_nobody_at_the_address_keeps_the_results() -> None:
    run_a_lesson()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        me = join(f"http://127.0.0.1:{probe.getsockname()[1]}")
        with pytest.raises(LessonError, match=r"No collector answers at .* your entry waits here"):
            sharing.share(entry(id=me.id), me)
        with pytest.raises(LessonError, match="No collector answers at"):
            sharing.read(me.to)
    assert (results_folder() / "lesson-01.json").exists()
    kept = find(me.to)
    assert kept is not None
    assert kept.pending is not None


@pytest.mark.parametrize("to", ["http://?", "http://[", "http://a b", "http://\udcff", "http://x:99999"])
def test_addresses_that_are_none(to: str) -> None:
    with pytest.raises(LessonError, match="No collector answers at"):
        sharing.read(to)


def test_an_address_without_http_is_told() -> None:
    with pytest.raises(LessonError, match="a collector's address begins with http://"):
        sharing.read("10.0.0.1:8400")


# The command line


def wall(*words: str, input: str | None = None) -> str:
    return CliRunner().invoke(app, ["wall", *words], input=input).output


def test_share_shows_all_of_it_and_asks(tmp_path: Path) -> None:
    run_a_lesson()
    to = tmp_path / "class"
    to.mkdir()
    assert '"tokens_per_s": 100.0' in wall("share", "--to", str(to), input="n\n")
    assert list(to.iterdir()) == []
    assert not path().exists()  # who says no has left nothing behind
    wall("share", "--to", str(to), "--name", "Ada", "--yes")
    assert [one.name for one in Folder(to).entries()[0]] == ["Ada"]
    page = tmp_path / "wall.html"
    assert "1 learner, on one page" in wall("show", str(to), "--static", str(page))
    assert "Ada" in page.read_text(encoding="utf-8")
    assert "Taken off" in wall("withdraw", "--to", str(to))
    assert "There is nothing of this machine" in wall("withdraw", "--to", str(to))


def test_what_waited_goes_along(tmp_path: Path) -> None:
    run_a_lesson()
    away, here = tmp_path / "usb", tmp_path / "class"
    here.mkdir()
    assert "waits here" in wall("share", "--to", str(away), "--yes")
    away.mkdir()
    assert f"What waited for {away} went along." in wall("share", "--to", str(here), "--yes")
    assert len(Folder(away).entries()[0]) == len(Folder(here).entries()[0]) == 1
    assert "went along" not in wall("share", "--to", str(here), "--yes")  # once


def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    run_a_lesson()
    file = tmp_path / "file"
    file.touch()
    for words in (
        ["show", str(tmp_path / "nowhere")],
        ["show", "http://127.0.0.1:9"],
        ["collect", "--folder", str(file)],
        ["collect", "--folder", str(tmp_path / "c"), "--host", "no.such.host.invalid"],
        ["share", "--to", str(tmp_path / "nowhere"), "--yes", "--name", "<b>"],
        ["withdraw", "--to", "http://127.0.0.1:9"],
    ):
        done = CliRunner().invoke(app, ["wall", *words])
        last = done.output.strip().splitlines()[-1]
        assert done.exit_code == (0 if words[0] == "withdraw" else 2), done.output
        assert last.endswith((".", "9")), done.output
        assert "Traceback" not in done.output


# In a notebook


def test_a_notebook_sends_at_the_press_of_a_button(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_a_lesson()
    to = tmp_path / "class"
    to.mkdir()
    with pytest.raises(LessonError, match="Nobody has shared anything"):
        notebook.wall(str(to))
    notebook.share(str(to), "Ada")
    assert '"name": "Ada"' in capsys.readouterr().out
    assert list(to.iterdir()) == []
    me = join(str(to))
    box = notebook._button(entry("Ada", me.id), me)
    box.children[0].click()
    assert [one.name for one in Folder(to).entries()[0]] == ["Ada"]
    shutil.rmtree(to)
    capsys.readouterr()
    box.children[0].click()
    assert "Not shared: There is no class folder" in capsys.readouterr().out
    to.mkdir()
    box.children[0].click()
    capsys.readouterr()
    notebook.wall(str(to))
    assert "0 of 1 prediction by 1 learner lie within 2×" in capsys.readouterr().out
