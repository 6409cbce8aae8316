"""A kit tells a machine that it is not for, and how to get one that is."""

from __future__ import annotations

import platform
import runpy
import socket
import sys
from pathlib import Path

import pytest

from labcore.errors import KitError
from labcore.kit import launcher, machine
from labcore.kit.manifest import Target


def _target(platform_: str = "linux-x86_64", python: str = "3.11") -> Target:
    return Target(platform_, python, "none", [], {}, 0)


@pytest.fixture
def _linux_with_311(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "this_platform", lambda: "linux-x86_64")
    monkeypatch.setattr(machine, "this_python", lambda: "3.11")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))


@pytest.mark.usefixtures("_linux_with_311")
def test_the_target_of_this_machine_is_chosen_among_many() -> None:
    targets = [_target("macos-arm64"), _target(python="3.12"), _target()]
    assert machine.choose(targets) is targets[2]


@pytest.mark.usefixtures("_linux_with_311")
def test_other_platform_is_refused_with_the_command_that_builds_for_it() -> None:
    with pytest.raises(
        KitError, match="for macos-arm64 and this machine is linux-x86_64; .*--platform linux-x86_64"
    ):
        machine.choose([_target("macos-arm64")])


@pytest.mark.parametrize(
    ("system", "processor", "name"),
    [
        ("Linux", "x86_64", "linux-x86_64"),
        ("Linux", "arm64", "linux-aarch64"),
        ("Darwin", "arm64", "macos-arm64"),
        ("Windows", "AMD64", "windows-x86_64"),
    ],
)
def test_machines_have_one_name(
    monkeypatch: pytest.MonkeyPatch, system: str, processor: str, name: str
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: processor)
    assert machine.this_platform() == name


def test_machine_without_any_kit_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "this_platform", lambda: "windows-x86_64")
    with pytest.raises(KitError, match="kits exist for linux-x86_64, linux-aarch64, macos-arm64 only"):
        machine.choose([_target()])


@pytest.mark.usefixtures("_linux_with_311")
def test_other_python_is_refused_and_one_that_fits_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        KitError, match=r"for Python 3.12 and 3.13 and this is Python 3.11; install Python 3.13"
    ):
        machine.choose([_target(python="3.12"), _target(python="3.13")])
    there = tmp_path / "python3.12"
    there.write_text("#!/bin/sh\n")
    there.chmod(0o755)
    with pytest.raises(KitError, match=f"run it with {there}"):
        machine.choose([_target(python="3.12")])


@pytest.mark.usefixtures("_linux_with_311")
@pytest.mark.parametrize(("version", "found"), [("2.27", "2.27"), ("", "none")])
def test_old_or_other_c_library_is_refused(monkeypatch: pytest.MonkeyPatch, version: str, found: str) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", version))
    with pytest.raises(KitError, match=f"need glibc 2.28 or later and this system has {found}"):
        machine.choose([_target()])


@pytest.mark.usefixtures("_linux_with_311")
def test_python_without_venv_is_refused_with_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "venv", None)
    with pytest.raises(KitError, match="no module venv, .*apt-get install python3-venv"):
        machine.choose([_target()])


def test_too_old_python_reads_the_launcher_and_is_told_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 6))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(launcher.__file__, run_name="__main__")
    assert ended.value.code == 2
    assert (
        "needs Python 3.11 or later and this is 3.9; run install.py with a newer one"
        in capsys.readouterr().err
    )


def test_launcher_is_written_for_old_pythons() -> None:
    """What runs before its check of the version parses with the oldest Python that systems still bring."""
    import ast

    ast.parse(Path(launcher.__file__).read_text(encoding="utf-8"), feature_version=(3, 6))


def test_loopback_is_found_where_it_is_and_missed_where_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.has_loopback()

    def unreachable(*_: object) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", unreachable)
    assert not machine.has_loopback()
