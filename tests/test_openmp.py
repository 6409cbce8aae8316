"""Threads are told to sleep before torch loads them, and never against the environment's word."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from labcore import openmp


def test_nothing_changes_once_torch_has_loaded() -> None:
    environ: dict[str, str] = {}
    assert not openmp.wait_passively(environ)
    assert environ == {}


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_an_outer_setting_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    environ = {name: "7"}
    assert not openmp.wait_passively(environ)
    assert environ == {name: "7"}


@pytest.mark.parametrize(
    ("imports", "passive"),
    [("labcore", True), ("labcore.cli", True), ("torch, labcore", False)],
    ids=["package", "command line", "torch first"],
)
def test_importing_the_package_lets_threads_sleep(imports: str, passive: bool) -> None:
    """In an environment that says nothing: torch's runtime reads it, and processes inherit it."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    environ = {name: value for name, value in os.environ.items() if name not in names}
    environ["OMP_DISPLAY_ENV"] = "verbose"  # libgomp prints what it read while it was loaded
    code = f"import {imports}, os, torch; print(os.environ.get('OMP_WAIT_POLICY'))"
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ("passive" if passive else "None")
    if "GOMP_SPINCOUNT" in done.stderr:  # GNU's runtime says what it made of it; others print other names
        assert ("GOMP_SPINCOUNT = '0'" in done.stderr) == passive


def test_the_policy_is_named() -> None:
    assert openmp.wait_policy({}) == ""
    assert openmp.wait_policy({"GOMP_SPINCOUNT": "5", "PATH": "/bin"}) == "GOMP_SPINCOUNT=5"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
def test_a_forked_process_computes() -> None:
    """After this one has used its threads, which the other does not have."""
    code = (
        "import labcore, os, torch; torch.set_num_threads(2); model = labcore.load('story')\n"
        "def tokens(): return labcore.generate(model, 'Once upon a time', max_new_tokens=4).tokens\n"
        "ours = tokens(); pid = os.fork()\n"
        "if pid == 0: os._exit(0 if tokens() == ours else 1)\n"
        "print(os.waitpid(pid, 0)[1], torch.get_num_threads())"
    )
    done = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, process_group=0)
    try:
        assert done.communicate(timeout=30)[0].split() == ["0", "2"]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(done.pid, signal.SIGKILL)
