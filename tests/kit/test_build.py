"""Building: what a kit holds, for which machine, and that an interrupted build goes on and never counts."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tarfile
from pathlib import Path

import pytest

from labcore.errors import KitError
from labcore.kit import build as building
from labcore.kit import files, install, machine, manifest, wheels
from tests.kit.conftest import content, make_wheel, order


def _build(clone: Path, out: Path, **changes: object) -> manifest.Manifest:
    return building.build(order(**changes), out, "labcore kit build", clone=clone)


def test_kit_holds_a_clone_and_its_packages_and_nothing_of_the_instructors(built: Path) -> None:
    names = set(content(built))
    listed = manifest.read(built)
    assert set(listed.files) | {manifest.LIST, manifest.LIST_SUM} == names
    assert {"lab/notebooks/01_first.ipynb", "lab/labcore/kit/install.py", "install.py"} <= names
    assert set(listed.targets[0].packages) == {"torch", "toy", "extra", "editables", "pip"}
    unwanted = r"runs/|guides/|checkpoints|\.venv|__pycache__|\.part"
    assert not [name for name in names if re.search(unwanted, name)]


def test_nothing_of_the_kits_own_names_an_index(built: Path) -> None:
    own = [built / name for name in ("install.py", "READ-ME-FIRST.txt", manifest.LIST)]
    assert not [path for path in own if re.search(r"pypi|https?://|file:", path.read_text())]


def test_one_kit_serves_many_machines_each_with_what_it_needs(
    only_index: None, clone: Path, tmp_path: Path
) -> None:
    made = _build(clone, tmp_path / "kit", platforms=list(machine.PLATFORMS), pythons=["3.11", "3.12"])
    assert len(made.targets) == 6
    for target in made.targets:
        assert ("macs" in target.packages) == target.platform.startswith("macos"), target
    assert len(made.under("wheels")) == 6  # shared: the six packages, once each


class Killed(BaseException):
    """Stands for a process that ends in the middle."""


@pytest.mark.parametrize("after", [1, 5, 20])
def test_build_that_was_killed_counts_for_nothing_and_goes_on(
    only_index: None, built: Path, clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    out = tmp_path / "kit"
    count, replace = 0, os.replace

    def replace_until_killed(source: Path, target: Path) -> None:
        nonlocal count
        if count == after:
            raise Killed
        count += 1
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_until_killed)
        with pytest.raises(Killed):
            _build(clone, out)
    with pytest.raises(KitError, match="unfinished"):
        install.check(out)
    (out / "wheels" / "toy-1.0-py3-none-any.whl.part").write_bytes(b"half")  # as a killed process leaves it
    there = {path: path.stat().st_ino for path in out.rglob("*.*") if path.is_file() and path.stat().st_size}
    _build(clone, out)
    install.check(out)
    assert set(content(out)) == set(content(built))
    kept = [path for path, inode in there.items() if path.exists() and path.stat().st_ino == inode]
    assert len(kept) >= after - 2  # all but the part and the text that every build writes anew


def test_finished_kit_is_brought_up_to_date_and_sheds_what_it_no_longer_needs(
    only_index: None, index: Path, clone: Path, kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = Path(shutil.copytree(index, tmp_path / "newer"))
    make_wheel(newer, "extra", "2.0")
    monkeypatch.setenv("PIP_FIND_LINKS", str(newer))
    (kit / "lab" / "labcore" / "left.part").write_text("half")
    made = _build(clone, kit)
    assert made.targets[0].packages["extra"] == "2.0"
    assert not list(kit.rglob("extra-1.0*"))
    assert not list(kit.rglob("*.part"))
    install.check(kit)


def test_archive_is_the_kit_with_its_checksum(kit: Path, tmp_path: Path) -> None:
    tar = building.pack(kit)
    stated, name = tar.with_name("lab-kit.tar.sha256").read_text().split()
    assert (stated, name) == (files.digest(tar), "lab-kit.tar")
    with tarfile.open(tar) as archive:
        archive.extractall(tmp_path / "out", filter="data")
    assert content(tmp_path / "out" / "lab-kit") == content(kit)


def test_size_is_told_before_and_too_small_a_disk_is_refused_untouched(
    only_index: None,
    clone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(files, "room", lambda folder: 100_000)
    with pytest.raises(KitError, match=r"The kit needs \d.* MB on the disk of .* and 0.1 MB are free; free"):
        _build(clone, tmp_path / "kit")
    assert re.search(r"The kit will take \d.* MB; \d.* MB are to be fetched", capsys.readouterr().out)
    assert not (tmp_path / "kit").exists()


def test_disk_that_fills_up_is_said_and_the_build_goes_on_later(
    only_index: None, clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        with pytest.raises(KitError, match=r"is full .* what is done stays done"):
            _build(clone, tmp_path / "kit")
    assert not list(tmp_path.rglob("*.part"))
    _build(clone, tmp_path / "kit")
    install.check(tmp_path / "kit")


def test_foreign_folder_is_refused(clone: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(KitError, match="is there and is no kit; name a new folder with --out"):
        _build(clone, tmp_path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"platforms": ["windows-x86_64"]}, "no kits for 'windows-x86_64'; choose linux-x86_64"),
        ({"pythons": ["3.9"]}, "Python 3.11 or later, written as 3.11, and not '3.9'"),
        ({"platforms": ["macos-arm64"], "gpu": "cuda"}, "CUDA is there on Linux only"),
    ],
)
def test_orders_that_cannot_be_filled_are_refused(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(KitError, match=sentence):
        order(**changes)


def test_package_that_the_index_lacks_is_named(
    only_index: None, clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(
        KitError, match=r"pip found no packages for .* requirement torch==2\.13\.0.*check the network"
    ):
        _build(clone, tmp_path / "kit")


def test_cuda_kit_from_an_index_with_cpu_builds_only_is_refused() -> None:
    cpu = wheels.Wheel("torch", "2.13.0+cpu", "torch.whl", "", "")
    with pytest.raises(KitError, match=r"offers torch 2\.13\.0\+cpu, which uses no GPU"):
        building._look_at_torch([cpu], "cuda")


def test_unused_cuda_packages_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    found = [wheels.Wheel(name, "1", "", "", "") for name in ("torch", "nvidia-cublas", "nvidia-nccl")]
    building._look_at_torch(found, "none")
    assert "has no CPU build of torch for this platform: 2 CUDA packages" in capsys.readouterr().out


def test_torch_is_asked_for_as_the_makefile_does(root: Path) -> None:
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    assert f"echo '{wheels.TORCH['cuda']}' || echo '{wheels.TORCH['none']}'" in makefile


def test_requirements_take_in_nested_extras_once(root: Path) -> None:
    wanted = wheels.requirements(root, "none")
    names = [re.split(r"[<>=\[; ]", entry)[0] for entry in wanted]
    assert {"torch", "jupyterlab", "fastapi", "huggingface_hub", "gguf", "hatchling", "pip"} <= set(names)
    assert "labcore" not in names
    assert len(wanted) == len(set(wanted))
