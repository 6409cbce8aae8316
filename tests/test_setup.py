"""What is installed from here: the wheel's content, and the commands of the Makefile."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    words = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(words, cwd=root, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


def test_wheel_carries_models_types_and_configuration_and_no_tests(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        "labcore/py.typed",
        "labcore/lab/jupyter_config/jupyter_lab_config.json",
        "labcore/_data/catalog/gpus.json",
        "labcore/_data/story/model/config.json",
        "labcore/_data/story/model/model.safetensors",
        "labcore/_data/story/model/tokenizer.json",
    }
    assert expected <= names
    assert not [name for name in names if name.startswith(("tests/", "notebooks/"))]


def test_installed_wheel_finds_its_models(wheel: Path, tmp_path: Path) -> None:
    """Outside of any clone: the package, and the data inside of it."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = "import labcore, labcore.catalog as c; print(labcore.__file__, c.embedded('story'), sep='\\n')"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    package, model = done.stdout.splitlines()
    assert Path(package) == tmp_path / "labcore" / "__init__.py"
    assert Path(model) == tmp_path / "labcore" / "_data" / "story" / "model"


def _make(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *words], cwd=root, capture_output=True, text=True)


@needs_make
def test_make_alone_lists_the_commands(root: Path) -> None:
    shown = _make(root).stdout
    assert [
        name for name in ("make lab", "make test", "make check", "make lessons") if name not in shown
    ] == []


@needs_make
def test_old_python_is_refused_with_the_mend(root: Path, tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")  # what the version question gets from an old one
    old.chmod(0o755)
    done = _make(root, f"VENV={tmp_path / 'venv'}", f"PYTHON={old}", f"{tmp_path / 'venv'}/bin/python")
    assert done.returncode != 0
    assert "is too old: labcore needs Python 3.11 or later." in done.stderr


@needs_make
def test_no_python_at_all_is_refused_with_the_mend(root: Path, tmp_path: Path) -> None:
    done = _make(root, f"VENV={tmp_path / 'venv'}", "PYTHON=", f"{tmp_path / 'venv'}/bin/python")
    assert done.returncode != 0
    assert "make lab PYTHON=/path/to/python3.12" in done.stderr


@needs_make
@pytest.mark.parametrize(("answer", "torch"), [("GPU 0: NVIDIA A10", "torch>=2.9"), ("", "torch==2.13.0")])
def test_torch_goes_with_the_machine(root: Path, tmp_path: Path, answer: str, torch: str) -> None:
    """With an NVIDIA GPU the whole range, without one the release that has a CPU build."""
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\necho '{answer}'\n")
    smi.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    rule = "print-torch: ; @echo '$(TORCH)'"
    done = subprocess.run(
        ["make", "-s", "--eval", rule, "print-torch"],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == torch, done.stderr


@pytest.mark.xdist_group("held together")
def test_tests_of_a_group_stay_together(request: pytest.FixtureRequest) -> None:
    """Else every worker executes every lesson: releases of pytest and pytest-xdist that do not fit each other
    deal a group out to all, and say nothing."""
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("one process, or tests are dealt out one by one")
    assert request.node.nodeid.endswith("@held together")
