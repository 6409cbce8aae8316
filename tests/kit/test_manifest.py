"""What is wrong with a kit is found and named, whatever it is."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labcore.errors import KitError
from labcore.kit import install, manifest


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "name", ["lab/notebooks/01_first.ipynb", "wheels/toy-1.0-py3-none-any.whl", "install.py"]
)
@pytest.mark.parametrize(
    ("damage", "named"),
    [(_truncate, "bytes of"), (_flip, "other content"), (Path.unlink, "missing")],
    ids=["truncated", "one bit", "missing"],
)
def test_damaged_file_is_named_with_the_mend(
    kit: Path, name: str, damage: Callable[[Path], None], named: str
) -> None:
    damage(kit / name)
    with pytest.raises(
        KitError, match=rf"1 of the kit's \d+ files is damaged or missing: {name} \(.*{named}"
    ) as error:
        install.check(kit)
    assert "copy that file again" in str(error.value)


def test_many_damaged_files_are_counted_and_three_are_named(kit: Path) -> None:
    broken = sorted((kit / "wheels").iterdir())
    for wheel in broken:
        wheel.unlink()
    with pytest.raises(
        KitError, match=f"{len(broken)} of the kit's .* and {len(broken) - 3} more; copy those files"
    ):
        install.check(kit)


def test_whole_kit_is_described_and_what_does_not_belong_is_ignored(kit: Path) -> None:
    assert "Not of the kit" not in install.check(kit)
    (kit / "lab" / ".DS_Store").write_text("from a Mac")
    said = install.check(kit)
    assert f"{kit} is whole: " in said
    assert "Not of the kit, and ignored: lab/.DS_Store (1 in all)." in said


@pytest.mark.parametrize("name", [manifest.LIST, manifest.LIST_SUM])
@pytest.mark.parametrize("damage", [_truncate, _flip, lambda path: path.write_text("{}")])
def test_damaged_list_is_never_believed(kit: Path, name: str, damage: Callable[[Path], None]) -> None:
    if name == manifest.LIST_SUM and damage is _truncate:
        (kit / name).write_text("")
    else:
        damage(kit / name)
    with pytest.raises(KitError, match=r"kit\.json is damaged .*copy the kit again|files is damaged"):
        install.check(kit)


def test_list_of_another_format_names_the_kits_own_program(kit: Path) -> None:
    data = json.loads((kit / manifest.LIST).read_text())
    (kit / manifest.LIST).write_text(json.dumps({**data, "format": 2}))
    (kit / manifest.LIST_SUM).write_text(manifest.files.digest(kit / manifest.LIST))
    with pytest.raises(KitError, match="format 2 and this lab reads 1; run the kit's own install.py"):
        manifest.read(kit)


def test_what_is_no_kit_is_said(kit: Path, tmp_path: Path) -> None:
    tar = tmp_path / "lab-kit.tar"
    tar.write_bytes(b"")
    with pytest.raises(KitError, match=r"unpack it first \(tar -xf"):
        manifest.read(tar)
    with pytest.raises(KitError, match="holds no kit.json, so it is no offline kit"):
        manifest.read(tmp_path)
    (kit / manifest.UNFINISHED).touch()
    with pytest.raises(KitError, match="is unfinished; run the labcore kit build"):
        manifest.read(kit)


def _rewrite(kit: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the list and its checksum, as somebody would who wants the kit to look whole."""
    data = json.loads((kit / manifest.LIST).read_text())
    change(data)
    (kit / manifest.LIST).write_text(json.dumps(data))
    (kit / manifest.LIST_SUM).write_text(manifest.files.digest(kit / manifest.LIST))


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _lists(path: str) -> Callable[[dict[str, Any]], object]:
    """A file beside the kit, with its right size and checksum."""
    entry = {"size": 4, "sha256": hashlib.sha256(b"evil").hexdigest()}
    return lambda data: data["files"].update({path: entry})


def _packs(**model: str) -> Callable[[dict[str, Any]], object]:
    right = {"name": "a/b", "kind": "hub", "folder": "models/hub/a--b", "commit": COMMIT}
    return lambda data: data["models"].append(right | model)


OUTSIDE = {
    "up": _lists("lab/../../evil"),
    "absolute": _lists("/tmp/evil"),
    "other systems": _lists("lab\\..\\evil"),
    "drive": _lists("C:evil"),
    "empty part": _lists("lab//evil"),
    "size": lambda data: data["files"].update({"lab/x": {"size": -1, "sha256": "0" * 64}}),
    "checksum": lambda data: data["files"].update({"lab/x": {"size": 1, "sha256": 7}}),
    "package": lambda data: data["targets"][0]["wheels"].append("../evil.whl"),
    "model's name": _packs(name="a/.."),
    "model's folder": _packs(folder="models/../lab"),
    "model elsewhere": _packs(folder="lab/notebooks"),
    "commit": _packs(commit="../../../../evil"),
    "no commit": _packs(commit=""),
    "folder's name": _packs(kind="folder", name="../.."),
    "kind": _packs(kind="other"),
}


@pytest.mark.parametrize("change", OUTSIDE.values(), ids=OUTSIDE)
def test_list_that_leads_out_of_the_kit_is_refused(
    kit: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    """By `check` as by `install`, and nothing is written."""
    _rewrite(kit, change)
    (kit.parent / "evil").write_text("evil")
    before = sorted(kit.parent.parent.rglob("*"))
    for use in (install.check, lambda kit: install.install(kit, kit.parent / "lab")):
        with pytest.raises(KitError, match=r"kit\.json was tampered with: the .*; do not use this kit"):
            use(kit)
    assert sorted(kit.parent.parent.rglob("*")) == before


@pytest.mark.parametrize("folder", [False, True])
def test_link_out_of_the_kit_is_damage(kit: Path, folder: bool) -> None:
    place = kit / "lab" / "notebooks" if folder else kit / "lab" / "notebooks" / "01_first.ipynb"
    outside = place.rename(kit.parent / "outside")
    place.symlink_to(outside)
    with pytest.raises(KitError, match="a link, which kits have none of"):
        install.check(kit)


def test_nothing_is_written_through_a_link_that_leads_out_of_the_lab(kit: Path, tmp_path: Path) -> None:
    lab, outside = tmp_path / "lab", tmp_path / "elsewhere"
    install.install(kit, lab)
    outside.mkdir()
    (outside / "01_first.ipynb").write_text("somebody else's")
    shutil.rmtree(lab / "notebooks")
    (lab / "notebooks").symlink_to(outside)
    with pytest.raises(KitError, match="outside of .*lab, because of a link on the way; remove the link"):
        install.install(kit, lab)
    assert (outside / "01_first.ipynb").read_text() == "somebody else's"
    assert len(list(outside.iterdir())) == 1
