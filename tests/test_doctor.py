"""What the doctor finds, on machines that are made up and on this one."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from labcore import doctor
from labcore.cli import app
from labcore.errors import CatalogError


def _only(findings: object) -> doctor.Finding:
    (finding,) = findings  # type: ignore[misc]
    return finding


def test_this_machine() -> None:
    findings = {finding.subject: finding for finding in doctor.examine("cpu")}
    assert platform.python_version() in findings["python"].value
    assert torch.__version__ in findings["engine"].value
    assert findings["kernel"].level == "ok"
    assert "GiB free of" in findings["memory"].value


def test_missing_package_is_a_problem_with_its_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LAB_PACKAGES", ("plotly", "no-such-package"))
    lab = [finding for finding in doctor._packages() if finding.subject == "lab"][0]
    assert lab.level == "problem"
    assert "missing: no-such-package; install with" in lab.note


def test_held_back_threads_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(doctor, "usable_cores", lambda: 8)
    finding = _only(doctor._threads(torch.device("cpu")))
    assert finding.level == "slow"
    assert finding.value == "1 for 8 cores this process may use"
    assert "OMP_NUM_THREADS=1" in finding.note


def test_more_threads_than_cores_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    monkeypatch.setattr(doctor, "usable_cores", lambda: 2)
    assert "set OMP_NUM_THREADS=2" in _only(doctor._threads(torch.device("cpu"))).note


@pytest.mark.parametrize(
    ("environ", "level", "text"),
    [
        ({}, "slow", "import labcore before torch"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "slow", "unset OMP_WAIT_POLICY"),
        ({"OMP_WAIT_POLICY": "passive"}, "ok", "OMP_WAIT_POLICY=passive"),
        ({"GOMP_SPINCOUNT": "500"}, "ok", "GOMP_SPINCOUNT=500"),
    ],
)
def test_how_threads_wait(environ: dict, level: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    finding = _only(doctor._waiting())
    assert finding.level == level
    assert text in finding.value + finding.note


@pytest.mark.parametrize(("busy", "level"), [(0.4, "ok"), (0.5, "slow")])
def test_load_of_others_is_named(busy: float, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "usable_cores", lambda: 2)
    monkeypatch.setattr(doctor, "LOAD_SECONDS", 0)
    monkeypatch.setattr(doctor.Neighbours, "busy_cores", lambda self: busy)
    finding = _only(doctor._load())
    assert (finding.level, finding.value) == (level, f"other programs use {busy} of 2 cores")


def test_full_disk_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    usage = doctor.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage._replace(free=5_000_000))
    assert _only(doctor._disk()).level == "problem"


def test_no_compiler_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert _only(doctor._compiler()).level == "slow"


def test_missing_model_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Path:
        raise CatalogError(f"{name} is not here.")

    monkeypatch.setattr(doctor.catalog, "embedded", absent)
    findings = list(doctor._models())
    # the lessons need the story model; only speculative decoding needs its draft
    assert [finding.level for finding in findings] == ["problem", "slow"]
    assert findings[0].note == "story is not here."


@pytest.mark.parametrize(("there", "level"), [(True, "ok"), (False, "slow")])
def test_kernels_of_our_own_are_named(monkeypatch: pytest.MonkeyPatch, there: bool, level: str) -> None:
    monkeypatch.setattr(doctor.native, "status", lambda: "what they say of themselves")
    monkeypatch.setattr(doctor.native, "available", lambda: there)
    finding = _only(doctor._native(torch.device("cpu")))
    assert (finding.value, finding.level) == ("what they say of themselves", level)


def test_another_kernel_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A `python3` kernel of some other Python would run the lessons without this labcore."""
    folder = tmp_path / "kernels" / "python3"
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(
        '{"argv": ["/elsewhere/python"], "display_name": "x", "language": "python"}'
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    finding = _only(doctor._kernel())
    assert finding.level == "problem"
    assert "/elsewhere/python" in finding.value


def test_kernels_are_measured_and_shown() -> None:
    done = CliRunner().invoke(app, ["doctor", "--kernels", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    for word in ("int8 x int8", "int4", "reference", "torch", "512", "*"):
        assert word in done.output


def test_a_budget_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A learner on a shared server sees whose limit it is."""
    monkeypatch.setenv("LABCORE_MEMORY_LIMIT", "1GiB")
    finding = next(one for one in doctor.examine("cpu") if one.subject == "memory")
    assert finding.value.endswith("of 1.0 GiB, which LABCORE_MEMORY_LIMIT allows")
    assert finding.level == "problem"
    assert "a lesson takes up to 2 GiB; ask for more, or raise LABCORE_MEMORY_LIMIT" in finding.note
