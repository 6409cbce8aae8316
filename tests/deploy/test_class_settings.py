"""Shares of a machine, homes, and what the configurations tell JupyterHub; without starting it."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

HERE = Path(__file__).parents[2] / "deploy" / "jupyterhub"
GIB = 1 << 30


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made


labcore_class = _load("labcore_class")
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


def test_a_home_gets_what_is_missing_and_keeps_what_is_there(tmp_path: Path) -> None:
    lessons, home = tmp_path / "notebooks", tmp_path / "homes" / "ada"
    lessons.mkdir()
    (lessons / "index.ipynb").write_text("front page")
    (lessons / "01_first.py").write_text("no notebook")
    labcore_class.prepare_home(home, lessons)
    assert [path.name for path in (home / "lessons").iterdir()] == ["index.ipynb"]
    assert home.stat().st_mode & 0o777 == 0o700
    (home / "lessons" / "index.ipynb").write_text("with my answers")
    (lessons / "02_new.ipynb").write_text("new")
    labcore_class.prepare_home(home, lessons)
    assert (home / "lessons" / "index.ipynb").read_text() == "with my answers"
    assert (home / "lessons" / "02_new.ipynb").read_text() == "new"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("LABCORE_CLASS_ROOT", str(tmp_path / "class"))
    monkeypatch.setenv("LABCORE_CLASS_FOLDER", str(tmp_path / "wall"))
    monkeypatch.setenv("LABCORE_CLASS_AT_ONCE", "5")
    monkeypatch.setattr(sys, "path", [*sys.path])
    return monkeypatch


def _configured(name: str) -> Any:
    """As JupyterHub reads it."""
    loader = pytest.importorskip("traitlets.config.loader").PyFileConfigLoader
    return loader(str(HERE / f"{name}.py")).load_config()


def test_a_machine_of_its_own(settings: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("jupyterhub")
    settings.setattr(labcore_class, "refusal", lambda *_: "")
    settings.setenv("LABCORE_CLASS_ADMINS", "grace, edsger")
    c = _configured("jupyterhub_config")
    assert c.JupyterHub.active_server_limit == 5
    assert c.Authenticator.admin_users == {"grace", "edsger"}
    assert c.Spawner.environment["LABCORE_CLASS_FOLDER"] == str(tmp_path / "class" / "wall")
    modes = {path.name: path.stat().st_mode & 0o7777 for path in (tmp_path / "class").iterdir()}
    assert modes == {"hub": 0o700, "homes": 0o711, "wall": 0o1777}
    for variable in ("JUPYTER_CONFIG_PATH", "JUPYTER_PATH"):
        assert all(Path(place).is_dir() for place in c.Spawner.environment[variable].split(os.pathsep))


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


def test_the_littlest_jupyterhub(settings: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It keeps its own spawner, logins and culler."""
    pytest.importorskip("traitlets")
    c = _configured("tljh")
    assert c.JupyterHub.active_server_limit == 5
    assert c.Spawner.mem_limit == 3 * GIB
    assert set(c.JupyterHub) == {"active_server_limit", "template_paths", "template_vars"}
    assert (tmp_path / "wall").stat().st_mode & 0o7777 == 0o1777
