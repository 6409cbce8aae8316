"""A toy lab and a toy index of packages: small kits, built and installed by the real code and pip."""

from __future__ import annotations

import ensurepip
import hashlib
import os
import shutil
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from labcore.kit import build as building
from labcore.kit import machine

PIP_WHEELS = [Path(ensurepip.__file__).parent / "_bundled", Path("/usr/share/python-wheels")]
BACKEND = """
import os
import time
import zipfile
from pathlib import Path

def build_editable(folder, config_settings=None, metadata_directory=None):
    if here := os.environ.get("TOY_WAITS"):  # says that it is at work, and is so until pip is gone
        parent = os.getppid()
        Path(here).touch()
        while os.getppid() == parent:
            time.sleep(0.02)
    name = "labcore-0.1.0-py3-none-any.whl"
    about = "labcore-0.1.0.dist-info"
    with zipfile.ZipFile(Path(folder) / name, "w") as wheel:
        wheel.writestr("labcore.pth", str(Path.cwd()))
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\\nName: labcore\\nVersion: 0.1.0\\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{about}/entry_points.txt", "[console_scripts]\\nlabcore = labcore.cli:app\\n")
        wheel.writestr(f"{about}/RECORD", "")
    return name
"""
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["labcore"]

[project]
name = "labcore"
version = "0.1.0"
dependencies = ["torch>=2.9", "toy>=1"]

[project.optional-dependencies]
lab = ["labcore[more]"]
more = ["extra>=1"]
"""


def make_wheel(folder: Path, name: str, version: str = "1.0", needs: str = "", weight: int = 0) -> Path:
    """A tiny wheel of one module, and of `weight` random bytes beside it."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    about = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += f"Requires-Dist: {needs}\n" if needs else ""
    files = {
        f"{name}/__init__.py": f"version = {version!r}\n".encode(),
        f"{name}/ballast.bin": os.urandom(weight),
        f"{about}/METADATA": metadata.encode(),
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{about}/RECORD"] = "".join(f"{file},,\n" for file in [*files, f"{about}/RECORD"]).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in files.items():
            archive.writestr(file, content)
    return path


def fill_index(folder: Path) -> None:
    """The packages of the toy lab, one of them needed on Macs only, and a real pip."""
    pips = [wheel for place in PIP_WHEELS if place.is_dir() for wheel in place.glob("pip-*.whl")]
    if not pips:
        pytest.skip("no wheel of pip on this machine, with which a kit installs")
    folder.mkdir()
    shutil.copy(pips[0], folder)
    make_wheel(folder, "torch", "2.13.0", weight=200_000)
    make_wheel(folder, "toy", needs='macs>=1; sys_platform == "darwin"')
    for name in ("extra", "macs"):
        make_wheel(folder, name)
    make_wheel(folder, "editables", "0.5")


def make_clone(folder: Path, root: Path) -> None:
    """A clone of a lab whose program is the kit's own code and a doctor that says one line."""
    package = folder / "labcore"
    shutil.copytree(root / "labcore" / "kit", package / "kit", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("__init__.py", "atomic.py", "errors.py", "openmp.py"):
        shutil.copy(root / "labcore" / name, package)
    (package / "cli.py").write_text("import sys\n\n\ndef app():\n    print('toy', *sys.argv[1:])\n")
    (package / "backend.py").write_text(BACKEND)
    (folder / "pyproject.toml").write_text(PROJECT)
    for name in ("notebooks/01_first.ipynb", "notebooks/02_second.ipynb", "data/story.txt", "README.md"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"the lab's {name}\n")
    for name in ("runs/results/lesson-01.json", "notebooks/.ipynb_checkpoints/old.ipynb", ".venv/pyvenv.cfg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("the instructor's own\n")


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of wheels that plays the index."""
    folder = tmp_path_factory.mktemp("kit") / "index"
    fill_index(folder)
    return folder


@pytest.fixture(scope="session")
def clone(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy clone; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("kit") / "clone"
    make_clone(folder, root)
    return folder


@contextmanager
def knowing_only(index: Path) -> Iterator[None]:
    """pip knows the toy index and nothing else; afterwards, what it knew before."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PIP_")]:
            patch.delenv(name)
        patch.setenv("PIP_CONFIG_FILE", os.devnull)
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(index))
        yield


@pytest.fixture
def only_index(index: Path) -> Iterator[None]:
    """For one test, which is not the one that needs the real index."""
    with knowing_only(index):
        yield


def order(**changes: object) -> building.Order:
    """What the toy kits hold: packages for this machine and this Python."""
    wanted = {"platforms": [machine.this_platform()], "pythons": [machine.this_python()], **changes}
    return building.Order(**wanted)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def built(index: Path, clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished toy kit; tests that change it take a copy (`kit`)."""
    out = tmp_path_factory.mktemp("kit") / "lab-kit"
    with knowing_only(index):
        building.build(order(), out, "labcore kit build", clone=clone)
    return out


@pytest.fixture
def kit(built: Path, tmp_path: Path) -> Path:
    """A toy kit to damage."""
    return Path(shutil.copytree(built, tmp_path / "a stick" / "lab-kit"))


def content(folder: Path) -> dict[str, str]:
    """Checksum of every file below a folder, by path."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


PYTHON = sys.executable
