"""Shares of a machine, homes, and what the configurations tell JupyterHub; without starting it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.deploy.shipped import HERE, load

GIB = 1 << 30

labcore_class = load("labcore_class")
Machine = labcore_class.Machine


@given(st.integers(1, 256), st.integers(4, 4096), st.sampled_from([0, 5, 24, 80, 141]))
def test_shares_fit_the_machine(cores: int, memory: int, gpu: int) -> None:
    machine = Machine(cores, memory * GIB, gpu * GIB)
    share = labcore_class.share_out(machine)
    assert 1 <= share.at_once <= 3 * cores
    assert share.at_once * share.memory <= machine.memory - labcore_class.KEPT
    assert share.threads * share.at_once <= max(cores, share.at_once)
    if gpu:
        taken = share.at_once * (share.gpu_memory + labcore_class.GPU_CONTEXT)
        assert taken <= machine.gpu_memory
        assert share.gpu_memory >= labcore_class.GPU_EACH


def test_thirty_on_a_large_server_and_what_they_are_told() -> None:
    share = labcore_class.share_out(Machine(32, 128 * GIB, 141 * GIB), at_once=30)
    assert (share.at_once, share.threads, share.memory) == (30, 1, 3 * GIB)
    assert share.environment() == {
        "LABCORE_MEMORY_LIMIT": str(3 * GIB - labcore_class.SERVER),
        "LABCORE_GPU_MEMORY_LIMIT": str(141 * GIB // 30 - GIB // 2),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
    }
    assert "LABCORE_GPU_MEMORY_LIMIT" not in labcore_class.share_out(Machine(2, 8 * GIB)).environment()


def test_a_machine_that_is_too_small_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match=r"takes 3\.0 GiB, the hub 1\.0, .* this machine has 2\.0 GiB"):
        labcore_class.share_out(Machine(2, 2 * GIB))
    with pytest.raises(ValueError, match=r"part of a GPU is 4\.5; .* its GPU 4\.0"):
        labcore_class.share_out(Machine(8, 64 * GIB, 4 * GIB))
    with pytest.raises(ValueError, match="LABCORE_CLASS_AT_ONCE=0 lets nobody in"):
        labcore_class.share_out(Machine(8, 64 * GIB), at_once=0)


def test_this_machine_is_described() -> None:
    found = labcore_class.this_machine()
    assert found.cores >= 1
    assert found.memory > GIB
    assert labcore_class.chosen_share({"LABCORE_CLASS_AT_ONCE": "3"}).at_once == 3


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("LABCORE_CLASS_ROOT", str(tmp_path / "class"))
    monkeypatch.setenv("LABCORE_CLASS_FOLDER", str(tmp_path / "wall"))
    monkeypatch.setenv("LABCORE_CLASS_AT_ONCE", "5")
    unset = "BIND TLS_CERT TLS_KEY SUBDOMAIN_HOST CODE INSTRUCTOR_CODE LEARNERS ADMINS"
    for name in unset.split():
        monkeypatch.delenv(f"LABCORE_CLASS_{name}", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return monkeypatch


def _configured(name: str) -> Any:
    """As JupyterHub reads it."""
    loader = pytest.importorskip("traitlets.config.loader").PyFileConfigLoader
    return loader(str(HERE / f"{name}.py")).load_config()


def test_a_machine_of_its_own(
    settings: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("jupyterhub")
    settings.setattr(labcore_class, "refusal", lambda *_: "")
    settings.setenv("LABCORE_CLASS_ADMINS", "grace, Edsger")
    c = _configured("jupyterhub_config")
    hub = tmp_path / "class" / "hub"
    assert c.JupyterHub.active_server_limit == 5
    assert c.Authenticator.admin_users == {"grace", "edsger"}
    assert c.Spawner.environment["LABCORE_CLASS_FOLDER"] == str(tmp_path / "class" / "wall")
    modes = {path.name: path.stat().st_mode & 0o7777 for path in (tmp_path / "class").iterdir()}
    assert modes == {"hub": 0o700, "homes": 0o711, "wall": 0o1777}
    for variable in ("JUPYTER_CONFIG_PATH", "JUPYTER_PATH"):
        assert all(Path(place).is_dir() for place in c.Spawner.environment[variable].split(os.pathsep))
    assert c.JupyterHub.bind_url == "http://127.0.0.1:8000"
    words = [(hub / f"{who}_code").read_text().strip() for who in ("class", "instructor")]
    assert [c.ClassAuthenticator.class_code, c.ClassAuthenticator.instructor_code] == words
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("To join: open http://127.0.0.1:8000, ")
    assert f"the class code {words[0]} " in first
    assert f"(edsger, grace) gives {words[1]} " in second


def test_named_learners_and_a_code_of_ones_own(settings: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("jupyterhub")
    settings.setattr(labcore_class, "refusal", lambda *_: "")
    settings.setenv("LABCORE_CLASS_LEARNERS", "Ada, ben")
    settings.setenv("LABCORE_CLASS_CODE", "swordfish")
    c = _configured("jupyterhub_config")
    assert (c.Authenticator.allow_all, c.Authenticator.allow_existing_users) == (False, False)
    assert c.Authenticator.allowed_users == {"ada", "ben"}
    assert (c.ClassAuthenticator.class_code, c.ClassAuthenticator.instructor_code) == ("swordfish", "")
    assert not (tmp_path / "class" / "hub" / "class_code").exists()


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("CODE", "abc", "'abc' is too easy to guess; give 6 characters"),
        ("BIND", "0.0.0.0:8000", "is no address such as http://127"),
        ("ROOT", "/dev/null/class", "class is no folder that the hub can use"),
    ],
)
def test_settings_that_cannot_be_are_said_at_the_start(
    settings: pytest.MonkeyPatch, name: str, value: str, why: str
) -> None:
    pytest.importorskip("jupyterhub")
    settings.setattr(labcore_class, "refusal", lambda *_: "")
    settings.setenv(f"LABCORE_CLASS_{name}", value)
    with pytest.raises(SystemExit, match=why):
        _configured("jupyterhub_config")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_python_that_learners_may_not_run_is_said_at_the_start(
    settings: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("jupyterhub")
    private = tmp_path / "python"
    private.write_text("#!/bin/sh\n")
    private.chmod(0o700)
    settings.setenv("LABCORE_CLASS_PYTHON", str(private))
    with pytest.raises(
        SystemExit, match=r"cannot start the lab with .*python \(.*; put the clone and its Python"
    ):
        _configured("jupyterhub_config")
    settings.setenv("LABCORE_CLASS_AT_ONCE", "0")
    settings.setattr(labcore_class, "refusal", lambda *_: "")
    with pytest.raises(SystemExit, match="LABCORE_CLASS_AT_ONCE=0 lets nobody in"):
        _configured("jupyterhub_config")


def test_a_clone_that_learners_may_not_read_is_said_at_the_start(tmp_path: Path) -> None:
    why = labcore_class.refusal(sys.executable, os.getuid(), [tmp_path / "start.sh"])
    assert "No such file" in why
    assert why.endswith("LABCORE_CLASS_PYTHON.")


def test_the_littlest_jupyterhub(settings: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It keeps its own spawner, logins and culler; nothing of ours runs at a start, which it does as root."""
    pytest.importorskip("traitlets")
    c = _configured("tljh")
    assert c.JupyterHub.active_server_limit == 5
    assert c.Spawner.mem_limit == 3 * GIB
    assert set(c) == {"JupyterHub", "Spawner"}
    assert set(c.JupyterHub) == {"active_server_limit", "template_paths", "template_vars"}
    assert set(c.Spawner) == {"mem_limit", "cpu_limit", "environment", "default_url"}
    assert not [value for part in c.values() for value in part.values() if callable(value)]
    assert (tmp_path / "wall").stat().st_mode & 0o7777 == 0o1777


_CHANGES = ("os.chmod", "os.chown", "os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir",
            "os.truncate", "os.utime", "shutil.", "subprocess.Popen", "os.system", "os.exec")  # fmt: skip


def test_the_littlest_jupyterhub_changes_nothing_but_the_folder_of_the_wall(
    settings: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever Python does as root while it reads the file."""
    pytest.importorskip("traitlets")
    settings.setattr(labcore_class, "_gpu_memory", lambda: 0)  # it asks nvidia-smi
    settings.setattr(sys, "dont_write_bytecode", True)
    _configured("tljh")  # what is imported is compiled
    (tmp_path / "wall").rmdir()
    changed: list[tuple[str, str]] = []
    watching = True

    def watch(event: str, args: tuple[Any, ...]) -> None:
        writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT
        writes = event == "open" and isinstance(args[2], int) and args[2] & writing
        if watching and (writes or event.startswith(_CHANGES)):
            changed.append((event, str(args[0])))

    sys.addaudithook(watch)  # it cannot be taken away again
    try:
        _configured("tljh")
    finally:
        watching = False
    assert [event for event, _ in changed] == ["os.mkdir", "os.chmod"]
    assert changed[0][1] == str(tmp_path / "wall")
