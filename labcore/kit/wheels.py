"""The wheelhouse: which wheels a machine needs, how large they are, and fetching them, by the user's own pip.

pip resolves and downloads, so its index, certificates, proxies and cache are the ones set up here. Two things
it cannot do are added: asking dependencies' conditions about another machine than this one (pip asks them
about the running Python, whatever --platform says), and keeping what an interrupted download had fetched.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from labcore.errors import KitError
from labcore.kit import files
from labcore.kit.machine import Platform
from labcore.kit.progress import Progress

# As the Makefile asks: without a GPU the release that also exists as a CPU build, which an index that carries
# it prefers; with one whatever fits.
TORCH = {"none": "torch==2.13.0", "cuda": "torch>=2.9"}
# To install the project editable without a build environment of its own, and to install anything at all.
_TOOLS = ["editables>=0.5", "pip>=23.2"]
_BATCH = 12  # wheels a call of pip: enough to be quick, few enough to lose little at an interruption

# pip, with the target's answers in place of this machine's.
_PIP = """
import json, sys
from pip._vendor.packaging import markers
answers, here = json.loads(sys.argv.pop(1)), markers.default_environment
markers.default_environment = lambda: {**here(), **answers}
from pip._internal.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Wheel:
    """One wheel as pip chose it; sha256 is empty where the index states none."""

    name: str
    version: str
    file: str
    url: str
    sha256: str

    @property
    def pin(self) -> str:
        """The requirement that means this wheel and no other."""
        return f"{self.name}=={self.version}" + (f" --hash=sha256:{self.sha256}" if self.sha256 else "")


def requirements(project: Path, gpu: str) -> list[str]:
    """What the lab's environment needs: torch, the engine's and the lab's packages, and what builds it."""
    data = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    extras: dict[str, list[str]] = data["project"].get("optional-dependencies", {})
    start = data["project"]["name"] + "["  # an extra that takes in another

    def expand(entries: Sequence[str]) -> list[str]:
        own = [entry for entry in entries if not entry.startswith(start)]
        nested = [entry.removeprefix(start).rstrip("]") for entry in entries if entry.startswith(start)]
        return own + [inner for extra in nested for inner in expand(extras[extra])]

    listed = [TORCH[gpu], *data["project"]["dependencies"], *expand(extras.get("lab", []))]
    return list(dict.fromkeys([*listed, *data["build-system"]["requires"], *_TOOLS]))


def resolve(wanted: Sequence[str], platform: Platform, python: str) -> list[Wheel]:
    """The wheels that satisfy requirements on a machine. Raises KitError with pip's reason."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        words = ["install", "--dry-run", "--ignore-installed", "--target", folder, "--report", str(report)]
        _pip([*words, *_for(platform, python), *wanted], platform, python)
        found = json.loads(report.read_text(encoding="utf-8"))
    if found["environment"]["platform_machine"] != platform.markers["platform_machine"]:
        raise KitError(
            "This pip answers for this machine only; update it: python -m pip install --upgrade pip."
        )
    return sorted((_wheel(entry) for entry in found["install"]), key=lambda wheel: wheel.file)


def _wheel(entry: dict[str, Any]) -> Wheel:
    about, source = entry["metadata"], entry["download_info"]
    file = unquote(urlsplit(source["url"]).path).rpartition("/")[2]
    sha256 = source.get("archive_info", {}).get("hashes", {}).get("sha256", "")
    return Wheel(about["name"], about["version"], file, source["url"], sha256)


def _for(platform: Platform, python: str) -> list[str]:
    tags = [word for tag in platform.tags for word in ("--platform", tag)]
    return ["--only-binary=:all:", "--implementation", "cp", "--python-version", python, *tags]


def _pip(words: Sequence[str], platform: Platform, python: str) -> None:
    """Run pip as if on another machine. Raises KitError with the reason that it gave."""
    answers = {
        **platform.markers, "os_name": "posix",
        "python_version": python, "python_full_version": f"{python}.0",
        "implementation_name": "cpython", "platform_python_implementation": "CPython",
    }  # fmt: skip
    calm = ["--quiet", "--no-input", "--disable-pip-version-check", "--retries=2"]
    done = subprocess.run(
        [sys.executable, "-c", _PIP, json.dumps(answers), *words, *calm], capture_output=True, text=True
    )
    if done.returncode:
        raise _why(done.stderr, platform, python)


def _why(said: str, platform: Platform, python: str) -> KitError:
    if "No space left on device" in said:
        return KitError(
            f"The disk of {tempfile.gettempdir()} filled up while pip was fetching packages; free some space."
        )
    if "No module named 'pip'" in said:
        return KitError(
            f"{sys.executable} has no pip, which fetches the packages: {sys.executable} -m ensurepip."
        )
    errors = [line.removeprefix("ERROR: ") for line in said.splitlines() if line.startswith("ERROR: ")]
    reason = errors[0] if errors else (said.strip().splitlines() or ["no reason given"])[-1]
    return KitError(
        f"pip found no packages for {platform.name} with Python {python} ({reason.rstrip('.')}); check the "
        "network and the index that pip uses, or choose another platform or Python."
    )


def sizes(wheels: Sequence[Wheel]) -> dict[str, int]:
    """Bytes of those wheels whose size can be had without fetching them, by file."""
    import httpx

    def size(wheel: Wheel) -> int:
        try:
            if wheel.url.startswith("file:"):
                return Path(unquote(urlsplit(wheel.url).path)).stat().st_size
            return int(client.head(wheel.url).headers["content-length"])
        except (OSError, KeyError, ValueError, httpx.HTTPError):
            return 0

    with httpx.Client(follow_redirects=True, timeout=15) as client, ThreadPoolExecutor(16) as pool:
        found = dict(zip((wheel.file for wheel in wheels), pool.map(size, wheels), strict=True))
    return {file: nbytes for file, nbytes in found.items() if nbytes}


def missing(wheels: Sequence[Wheel], folder: Path) -> list[Wheel]:
    """Those that do not lie in a folder with the right content."""
    return [wheel for wheel in wheels if not files.is_right(folder / wheel.file, wheel.sha256)]


def fetch(wheels: Sequence[Wheel], folder: Path, platform: Platform, python: str, progress: Progress) -> None:
    """Bring what a target lacks of wheels into a folder, whole files only. Raises KitError, OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    incoming = folder.with_name(folder.name + files.PART)
    wanted = missing(wheels, folder)
    for start in range(0, len(wanted), _BATCH):
        batch = wanted[start : start + _BATCH]
        shutil.rmtree(incoming, ignore_errors=True)
        incoming.mkdir()
        _download(batch, incoming, platform, python)
        for wheel in batch:
            _accept(wheel, incoming, folder)
        progress.show(len(wheels) - len(wanted) + start + len(batch))
    shutil.rmtree(incoming, ignore_errors=True)


def _download(batch: Sequence[Wheel], incoming: Path, platform: Platform, python: str) -> None:
    pins = incoming / "pins.txt"
    known = all(wheel.sha256 for wheel in batch)  # with one hash pip wants one for each
    pins.write_text(
        "\n".join(wheel.pin if known else wheel.pin.split()[0] for wheel in batch), encoding="utf-8"
    )
    words = ["download", "--no-deps", "--dest", str(incoming), *_for(platform, python), "-r", str(pins)]
    _pip(words, platform, python)


def _accept(wheel: Wheel, incoming: Path, folder: Path) -> None:
    """Move a fetched file to its place, if it is the one that was chosen."""
    got = incoming / wheel.file
    if not got.is_file() or (wheel.sha256 and files.digest(got) != wheel.sha256):
        raise KitError(f"The index gave another file than {wheel.file} just now; run the same command again.")
    os.replace(got, folder / wheel.file)
