"""Install a lab from a kit, without a network. Standard library only.

Every step can be stopped and run again: files are copied whole or not at all, packages that an interrupted
run left half unpacked are unpacked again, and a learner's own files are never overwritten.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import time
from pathlib import Path

from labcore.errors import KitError
from labcore.kit import environment, files, machine, manifest, models, project
from labcore.kit.manifest import Condition, Manifest, Target
from labcore.kit.progress import Progress

STATE = ".lab-kit.json"  # in the lab's folder: what an installation wrote there
ENVIRONMENT = ".venv"
_MADE = ".lab-is-installed"  # what `make lab` looks for, so that it works without a network, too


def default_folder() -> Path:
    """Where the lab goes when nobody says."""
    return Path.home() / "inference-lab"


def check(kit: Path) -> str:
    """Verify a kit's files and describe it. Raises KitError that names what is damaged or missing."""
    listed, condition = _verified(kit)
    made_for = " and ".join(f"{target.platform} with Python {target.python}" for target in listed.targets)
    carries = "".join(f", with {model.name}" for model in listed.models)
    return (
        f"{kit} is whole: {len(listed.files)} files, {files.megabytes(listed.nbytes)}, for "
        f"{made_for}{carries}; labcore {listed.lab}, made {listed.made_at}.{_about_extra(condition)}"
    )


def _verified(kit: Path) -> tuple[Manifest, Condition]:
    listed = manifest.read(kit)
    progress = Progress("Checking the kit", listed.nbytes)
    condition = manifest.examine(kit, listed, progress)
    condition.refuse(len(listed.files))
    progress.end(f"{len(listed.files)} files are right")
    return listed, condition


def _about_extra(condition: Condition) -> str:
    if not condition.extra:
        return ""
    return f" Not of the kit, and ignored: {', '.join(condition.extra[:3])} ({len(condition.extra)} in all)."


def install(kit: Path, into: Path, fresh: bool = False) -> None:
    """Install the lab into a folder, a new one or one that an earlier installation made.

    fresh: make the environment anew. Raises KitError: damaged kit, other machine, foreign folder, no room.
    """
    started = time.monotonic()
    kit, into = kit.absolute(), into.absolute()
    target = machine.choose(manifest.read(kit).targets)
    before = _earlier(into)
    print(f"Installing the lab into {into}")
    listed, condition = _verified(kit)
    if condition.extra:
        print(f" {_about_extra(condition)}")
    files.need_room(into, _missing_bytes(into, listed, target, fresh), "The lab")
    with files.full_disk_is_an_error(into):
        into.mkdir(parents=True, exist_ok=True)
        _remember(into, listed, before, finished=False)
        _copy_project(kit, into, listed, before)
        environment.make(into / ENVIRONMENT, kit / "wheels", target, into, fresh)
        for line in models.place(kit, listed, into):
            print(f"  Model {line}")
        (into / ENVIRONMENT / _MADE).touch()
        _remember(into, listed, {}, finished=True)
    _say_how_to_open(into, time.monotonic() - started)


def _earlier(into: Path) -> dict[str, str]:
    """What an earlier installation wrote into the folder. Raises KitError for a folder with other things."""
    if not into.exists() or (into.is_dir() and not any(into.iterdir())):
        return {}
    if into.is_dir() and (into / STATE).is_file():
        try:
            return dict(json.loads((into / STATE).read_text(encoding="utf-8"))["files"])
        except (ValueError, KeyError):
            return {}  # files that differ from the kit's are kept aside then
    kind = "is a folder with other things in it" if into.is_dir() else "is a file"
    raise KitError(f"{into} {kind}; name a new folder: --into {shlex.quote(str(into) + '-2')}.")


def _remember(into: Path, listed: Manifest, before: dict[str, str], finished: bool) -> None:
    """Keep what was written; until an installation is finished, what the earlier one wrote counts."""
    wrote = {path: entry.sha256 for path, entry in listed.under("lab").items()}
    state = {"finished": finished, "lab": listed.lab, "files": wrote if finished else before}
    files.write_whole(into / STATE, json.dumps(state, indent=1) + "\n")


def _missing_bytes(into: Path, listed: Manifest, target: Target, fresh: bool) -> int:
    """What an installation still has to write, at most."""
    inside = [*listed.under("lab").items(), *listed.under("models").items()]
    total = sum(entry.size for path, entry in inside if not (into / path).is_file())
    have = 0 if fresh else environment.unpacked_bytes(into / ENVIRONMENT)
    return total + max(0, target.installed_bytes - have)


def _copy_project(kit: Path, into: Path, listed: Manifest, before: dict[str, str]) -> None:
    done = project.update(kit / "lab", into, listed.under("lab"), before)
    print(f"  Lessons and program: {done.written} files written")
    if done.kept:
        print(f"  Kept as you changed them: {', '.join(done.kept)}")
    if done.aside:
        print(f"  Yours are kept beside the new ones, as NAME.yours: {', '.join(done.aside)}")


def _say_how_to_open(into: Path, seconds: float) -> None:
    """Look at the machine through the new lab's own doctor, and end with the one command to type."""
    program = into / ENVIRONMENT / "bin" / "labcore"
    print(f"Installed in {seconds:.0f} s. What the lab finds here:", flush=True)
    size = {"COLUMNS": str(shutil.get_terminal_size((100, 24)).columns)}
    found = subprocess.run([program, "doctor"], cwd=into, env={**os.environ, **size})
    if not machine.has_loopback():
        print(
            "This machine's loopback network is down, through which Jupyter talks to its kernels; bring it "
            "up before you open a lesson: sudo ip link set lo up"
        )
    if found.returncode:
        print("The lab is installed; the line above that says problem is to be mended before lessons run.")
    print(f"\nOpen the lab with:\n\n    {shlex.quote(str(program))} lessons open\n")
