"""The lab's own Python environment, filled from a kit's wheels. Standard library only.

pip runs from the kit's own wheel of it, so that Pythons that came without ensurepip (Debian's) can install,
too. It gets exactly the wheels that the kit lists for this machine, and no index, cache or configuration.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

from labcore.errors import KitError
from labcore.kit import files
from labcore.kit.manifest import Target
from labcore.kit.progress import Progress

_TIGHT = 2**20  # bytes left on a disk over which pip failed, whatever it said of it
_INSTALL = [
    "install", "--isolated", "--no-index", "--no-deps", "--no-cache-dir", "--no-build-isolation",
    "--no-input", "--disable-pip-version-check", "--no-warn-script-location", "--progress-bar=off", "--quiet",
]  # fmt: skip


def make(place: Path, wheels: Path, target: Target, project: Path, fresh: bool) -> None:
    """Make or complete an environment with a target's wheels and the project itself, editable.

    Raises KitError where pip fails, OSError on a full disk.
    """
    python = place / "bin" / "python"
    if fresh or (place.exists() and not _has_this_python(place)):
        shutil.rmtree(place)
    if not python.exists():
        venv.EnvBuilder(with_pip=False, symlinks=True).create(place)
    _forget_half_installed(_site_packages(place))
    chosen = [wheels / name for name in target.wheels]
    (pip,) = [wheel for wheel in chosen if wheel.name.startswith("pip-")]
    _watched([python, pip / "pip", *_INSTALL, "--find-links", wheels, *chosen], place, chosen)
    _run([python, "-m", "pip", *_INSTALL, "--editable", project], place)


def unpacked_bytes(place: Path) -> int:
    """Size of what an environment holds already."""
    site = _site_packages(place)
    return sum(path.lstat().st_size for path in site.rglob("*")) if site.is_dir() else 0


def installed_bytes(wheel: Path) -> int:
    """What a wheel unpacks to, with the bytecode that Python adds."""
    with ZipFile(wheel) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
    return sum(size * 2 if name.endswith(".py") else size for name, size in sizes.items())


def _site_packages(place: Path) -> Path:
    return place / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def _has_this_python(place: Path) -> bool:
    """Whether an environment was made by a Python of this version that is still there."""
    return _site_packages(place).is_dir() and (place / "bin" / "python").exists()


def _forget_half_installed(site: Path) -> None:
    """pip writes RECORD last; without one a package is half unpacked and would yet count as installed."""
    for about in site.glob("*.dist-info"):
        if not (about / "RECORD").is_file():
            shutil.rmtree(about)


def _watched(words: list[Path | str], place: Path, wheels: list[Path]) -> None:
    """Run pip, and show how much of the wheels it has unpacked."""
    sizes = {"-".join(wheel.name.split("-")[:2]).lower(): wheel.stat().st_size for wheel in wheels}
    progress = Progress("Unpacking packages", sum(sizes.values()))

    def look() -> None:
        here = {path.parent.stem.lower() for path in _site_packages(place).glob("*.dist-info/RECORD")}
        done = sizes.keys() & here
        progress.show(sum(sizes[name] for name in done), f"({len(done)} of {len(wheels)})")

    _run(words, place, look)
    progress.end(f"{len(wheels)} packages")


def _run(words: list[Path | str], place: Path, look: Callable[[], None] | None = None) -> None:
    """Run pip without anybody's configuration. Raises KitError with pip's reason, in a sentence."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "PYTHON"))}
    clean |= {"PIP_CONFIG_FILE": os.devnull, "TMPDIR": str(place)}
    pip = subprocess.Popen(words, env=clean, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said = _output(pip, look)
    finally:
        if pip.poll() is None:
            pip.terminate()
            pip.wait()
    if pip.returncode:
        raise _why(said, place, pip.returncode)


def _output(pip: subprocess.Popen[str], look: Callable[[], None] | None) -> str:
    """What pip says until it ends, kept in memory: a disk that it fills has no room for a log."""
    while True:
        try:
            return pip.communicate(timeout=0.5)[0]
        except subprocess.TimeoutExpired:
            if look:
                look()


def _why(said: str, place: Path, code: int) -> KitError:
    full = ("No space left on device", "Disk quota exceeded")
    if any(words in said for words in full) or files.room(place) < _TIGHT:
        return files.full_disk(place)
    lines = [line for line in said.splitlines() if line.strip()] or [f"it ended with code {code}"]
    reason = next((line for line in lines if line.startswith("ERROR:")), lines[-1]).removeprefix("ERROR: ")
    return KitError(
        f"pip could not install the kit's packages into {place} ({reason}); run the same command again with "
        "--fresh."
    )
