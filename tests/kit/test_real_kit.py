"""The real kit, from what pip reaches to the first cells of lesson 1, on a machine without any network."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from labcore.errors import KitError
from labcore.kit import build as building
from labcore.kit import install
from tests.kit.conftest import order

# A new network namespace has a loopback that is down, and nothing else; bring it up, as every laptop's is.
LOOPBACK_UP = """
import fcntl, os, socket, struct, sys
with socket.socket() as asker:
    fcntl.ioctl(asker, 0x8914, struct.pack("16sh22x", b"lo", 0x41))  # SIOCSIFFLAGS: up and running
os.execvp(sys.argv[1], sys.argv[1:])
"""
# What a learner does first; and proof that there is no way out.
FIRST_CELLS = """
import socket, sys, nbformat
from nbclient import NotebookClient

try:
    socket.create_connection(("192.0.2.1", 80), timeout=5)
except OSError as error:
    print("no network:", error.strerror)
notebook = nbformat.read(sys.argv[1], 4)
codes = [number for number, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
notebook.cells = notebook.cells[: codes[4] + 1]
NotebookClient(notebook, kernel_name="python3", timeout=120).execute(cwd="notebooks")
print("cells ran:", sum(cell.cell_type == "code" for cell in notebook.cells))
outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
print(*(output.get("text") or output.get("data") for output in outputs))
"""


def _without_network() -> list[str]:
    """Words that run a command in a network namespace of its own, or a skipped test."""
    for unshare in (["unshare", "-n"], ["unshare", "-rn"]):
        words = [*unshare, sys.executable, "-c", LOOPBACK_UP]
        if shutil.which("unshare") and not subprocess.run([*words, "true"], capture_output=True).returncode:
            return words
    pytest.skip("this machine makes no network namespace in which there is no network")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder for a kit and a lab, which are too large to be kept."""
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
def test_real_kit_installs_and_runs_lesson_1_without_a_network(place: Path) -> None:
    apart = _without_network()
    kit, home = place / "lab-kit", place / "home"
    home.mkdir()
    try:
        building.build(order(), kit, "labcore kit build")
    except KitError as error:
        if "check the network" in str(error):
            pytest.skip(f"no index to build a kit from: {error}")
        raise
    bare = ["env", "-i", f"HOME={home}", "PATH=/usr/bin:/bin", "LANG=C.UTF-8"]

    def run(*words: str | Path) -> str:
        where = lab if lab.is_dir() else place
        done = subprocess.run([*apart, *bare, *words], cwd=where, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    lab = home / "inference-lab"
    said = run(sys.executable, kit / "install.py")
    assert "everything that the lab needs is here" in said
    assert "loopback network is down" not in said
    text = run(lab / ".venv/bin/labcore", "generate", "Once upon a time", "--max-new-tokens", "8")
    assert len(text.split()) > 3
    lesson = run(lab / ".venv/bin/python", "-c", FIRST_CELLS, "notebooks/01_introduction.ipynb")
    assert "no network: " in lesson
    assert "cells ran: 5" in lesson
    assert "Lesson 01" in lesson
    assert install.check(kit).startswith(f"{kit} is whole")
