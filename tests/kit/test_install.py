"""Installing from a kit: alone, again, after a kill, on a full disk, and never over what is not its own."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from labcore.errors import KitError
from labcore.kit import environment, files, install, manifest
from tests.kit.conftest import content


def _launch(kit: Path, *words: str | Path, home: Path) -> subprocess.CompletedProcess[str]:
    """As a learner does: the kit's own install.py, from a shell without anything set up."""
    bare = {"HOME": str(home), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
    return subprocess.run(
        [sys.executable, kit / "install.py", *words], env=bare, capture_output=True, text=True
    )


def _at_work(kit: Path, folder: Path, **settings: Any) -> subprocess.Popen[Any]:
    """An installation into folder/lab that has unpacked packages and waits in the last one's build."""
    here = folder / "at work"
    words = [sys.executable, str(kit / "install.py"), "--into", str(folder / "lab")]
    run = subprocess.Popen(
        words, env=os.environ | {"TOY_WAITS": str(here)}, stdout=subprocess.DEVNULL, **settings
    )
    while run.poll() is None and not here.exists():
        time.sleep(0.01)
    return run


def _packages(lab: Path) -> set[str]:
    return {path.parent.name.split("-")[0] for path in lab.rglob("*.dist-info/RECORD")}


PACKAGES = {"torch", "toy", "extra", "editables", "pip", "labcore"}


def test_learner_without_anything_installs_into_a_path_with_spaces(kit: Path, tmp_path: Path) -> None:
    before = content(kit)
    home = tmp_path / "Ann's home"
    home.mkdir()
    done = _launch(kit, home=home)
    assert done.returncode == 0, done.stderr
    lab = home / "inference-lab"
    assert _packages(lab) == PACKAGES
    assert "toy doctor" in done.stdout
    command = done.stdout.strip().splitlines()[-1].strip()
    opened = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True)
    assert opened.stdout == "toy lessons open\n"
    assert content(kit) == before  # a kit may be read-only
    assert not list(lab.rglob("*.part"))
    assert (lab / ".venv" / ".lab-is-installed").stat().st_mtime >= (lab / "pyproject.toml").stat().st_mtime


@pytest.mark.slow
def test_installing_again_keeps_what_a_learner_changed(
    kit: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lab = tmp_path / "lab"
    install.install(kit, lab)
    (lab / "notebooks" / "01_first.ipynb").write_text("my answers")
    (lab / "notebooks" / "mine.ipynb").write_text("my own")
    install.install(kit, lab)
    assert "Kept as you changed them: notebooks/01_first.ipynb" in capfd.readouterr().out
    assert (lab / "notebooks" / "01_first.ipynb").read_text() == "my answers"
    assert (lab / "notebooks" / "mine.ipynb").read_text() == "my own"
    shutil.rmtree(next(lab.rglob("site-packages")) / "toy")
    install.install(kit, lab, fresh=True)
    assert next(lab.rglob("toy/__init__.py")).is_file()


def test_package_that_was_left_half_unpacked_is_unpacked_again(kit: Path, tmp_path: Path) -> None:
    """pip alone would take it for installed: its metadata are there."""
    lab = tmp_path / "lab"
    install.install(kit, lab)
    next(lab.rglob("toy-*.dist-info/RECORD")).unlink()
    next(lab.rglob("toy/__init__.py")).unlink()
    install.install(kit, lab)
    assert next(lab.rglob("toy/__init__.py")).is_file()
    assert _packages(lab) == PACKAGES


def test_installation_that_was_killed_goes_on(kit: Path, tmp_path: Path) -> None:
    with _at_work(kit, tmp_path, stderr=subprocess.DEVNULL, start_new_session=True) as run:
        os.killpg(run.pid, signal.SIGKILL)
    assert not json.loads((tmp_path / "lab" / install.STATE).read_text())["finished"]
    done = _launch(kit, "--into", tmp_path / "lab", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert _packages(tmp_path / "lab") == PACKAGES
    assert json.loads((tmp_path / "lab" / install.STATE).read_text())["finished"]


def test_damaged_kit_installs_nothing(kit: Path, tmp_path: Path) -> None:
    wheel = kit / "wheels" / "toy-1.0-py3-none-any.whl"
    wheel.write_bytes(wheel.read_bytes()[:100])
    done = _launch(kit, "--into", tmp_path / "lab", home=tmp_path)
    assert done.returncode == 2
    assert "wheels/toy-1.0-py3-none-any.whl (100 bytes of" in done.stderr
    assert done.stderr.strip().count("\n") == 0
    assert not (tmp_path / "lab").exists()


def test_kit_whose_own_program_is_damaged_says_so(kit: Path, tmp_path: Path) -> None:
    (kit / "lab" / "labcore" / "kit" / "install.py").write_text("def broken(")
    done = _launch(kit, home=tmp_path)
    assert done.returncode == 2
    assert "The kit's own program is damaged" in done.stderr
    (kit / "lab" / "labcore" / "kit" / "install.py").unlink()
    assert "copy the folder lab again" in _launch(kit, "--check", home=tmp_path).stderr


@pytest.mark.parametrize("thing", ["folder", "file"])
def test_what_is_no_lab_is_left_alone(kit: Path, tmp_path: Path, thing: str) -> None:
    place = tmp_path / "thesis"
    if thing == "folder":
        place.mkdir()
        (place / "chapter.txt").write_text("mine")
    else:
        place.write_text("mine")
    before = content(tmp_path)
    with pytest.raises(KitError, match=rf"thesis is a {thing}.*; name a new folder: --into"):
        install.install(kit, place)
    assert content(tmp_path) == before


def test_too_small_a_disk_is_refused_before_anything_is_written(
    kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "room", lambda folder: 0)
    with pytest.raises(KitError, match=r"The lab needs \d.* MB on the disk of .* and 0.0 MB are free"):
        install.install(kit, tmp_path / "lab")
    assert not (tmp_path / "lab").exists()


def test_disk_that_fills_up_loses_nothing(kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed lab, a newer kit, and a disk that fills up while the first new file is written."""
    lab = tmp_path / "lab"
    install.install(kit, lab)
    notebook = "lab/notebooks/01_first.ipynb"
    (kit / notebook).write_text("a newer lesson\n")
    listed = manifest.read(kit)
    newer = {**listed.files, **manifest.entries(kit, [notebook])}
    manifest.write(kit, replace(listed, files=newer))
    before = content(lab)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        with pytest.raises(KitError, match="is full .* what was there before is untouched"):
            install.install(kit, lab)
    after = content(lab)
    assert {name for name in before if before[name] != after.get(name)} == {install.STATE}
    install.install(kit, lab)
    assert (lab / "notebooks" / "01_first.ipynb").read_text() == "a newer lesson\n"


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of three megabytes."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mount, umount = shutil.which("mount"), shutil.which("umount")
    words = [mount or "mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if not (mount and umount) or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield folder
    subprocess.run([umount, str(folder)], check=True)


def test_pip_that_fills_a_real_disk_is_a_sentence(kit: Path, tiny_disk: Path) -> None:
    """The list says that there is room, and there is none for pip's own package."""
    listed = manifest.read(kit)
    manifest.write(kit, replace(listed, targets=[replace(listed.targets[0], installed_bytes=0)]))
    with pytest.raises(KitError, match=r"The disk of .* is full .* free some space and run the same command"):
        install.install(kit, tiny_disk / "lab")


def test_pip_that_fails_gives_its_reason_in_a_sentence(tmp_path: Path) -> None:
    said = "Processing a.whl\nERROR: a.whl is not a supported wheel on this platform.\n"
    error = environment._why(said, tmp_path, 1)
    assert (
        "(a.whl is not a supported wheel on this platform.); run the same command again with --fresh"
        in str(error)
    )


def test_ctrl_c_is_answered_in_a_line(kit: Path, tmp_path: Path) -> None:
    with _at_work(kit, tmp_path, stderr=subprocess.PIPE, text=True) as run:
        run.send_signal(signal.SIGINT)
        assert "Run the same command again to go on." in run.communicate()[1]
    assert run.returncode == 130
