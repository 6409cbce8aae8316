"""Make an offline kit: resolve, fetch, copy, list. An interrupted build goes on where it was."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import labcore
from labcore.atomic import replacing
from labcore.errors import KitError
from labcore.kit import environment, files, launcher, manifest, models, project, wheels
from labcore.kit.machine import PLATFORMS, Platform
from labcore.kit.manifest import Manifest, Target
from labcore.kit.progress import Progress
from labcore.kit.wheels import Wheel

_PYTHONS = range(11, 20)
_READ_ME = """The lab on LLM inference, for a machine without a network.

1. You need Linux or macOS and Python {pythons}:  python3 --version
2. In this folder:                               python3 install.py
3. At the end it prints the command that opens lesson 1.

This kit is for {platforms}. To verify it alone: python3 install.py --check
"""


@dataclass(frozen=True)
class Order:
    """What a kit is to hold: packages for each platform with each Python, and models beside the embedded."""

    platforms: Sequence[str]
    pythons: Sequence[str]
    gpu: str = "none"
    models: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in self.platforms:
            if name not in PLATFORMS:
                raise KitError(f"There are no kits for {name!r}; choose {' or '.join(PLATFORMS)}.")
            if self.gpu == "cuda" and not name.startswith("linux"):
                raise KitError(f"CUDA is there on Linux only, not on {name}; leave --gpu out for it.")
        known = [f"3.{minor}" for minor in _PYTHONS]
        for python in self.pythons:
            if python not in known:
                raise KitError(f"The lab needs Python 3.11 or later, written as 3.11, and not {python!r}.")

    @property
    def pairs(self) -> list[tuple[Platform, str]]:
        """Every platform with every Python."""
        return [(PLATFORMS[name], python) for name in self.platforms for python in self.pythons]


@dataclass(frozen=True)
class Plan:
    """What will be fetched and copied, and where it is to lie."""

    clone: Path
    out: Path
    targets: list[tuple[Platform, str, list[Wheel]]]
    models: list[models.Source]

    @property
    def wheels(self) -> list[Wheel]:
        """All targets' wheels, each once."""
        return list({wheel.file: wheel for *_, chosen in self.targets for wheel in chosen}.values())


def build(
    order: Order, out: Path, made_by: str, archive: bool = False, clone: Path | None = None
) -> Manifest:
    """Make a kit in a folder, and with `archive` one .tar file of it beside.

    made_by: the command, for the list. clone: where the project lies; this one's own when left out. Raises
    KitError (foreign folder, no room, nothing for such a machine, no network) and HubError.
    """
    out = out.absolute()
    clone = clone or project.root()
    _refuse_foreign(out)
    plan = _plan(order, out, clone)
    _tell_size(plan, archive)
    with files.full_disk_is_an_error(out):
        out.mkdir(parents=True, exist_ok=True)
        (out / manifest.UNFINISHED).touch()
        _fill(plan)
        made = _list(plan, order, made_by)
        if archive:
            pack(out)
    return made


def _refuse_foreign(out: Path) -> None:
    """Only an empty folder or a kit is written into, because what does not belong there is removed."""
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not _is_kit(out)):
        raise KitError(f"{out} is there and is no kit; name a new folder with --out.")


def _is_kit(out: Path) -> bool:
    return (out / manifest.LIST).is_file() or (out / manifest.UNFINISHED).is_file()


def _plan(order: Order, out: Path, clone: Path) -> Plan:
    wanted = wheels.requirements(clone, order.gpu)
    packed = models.find(order.models)
    targets = []
    for platform, python in order.pairs:
        progress = Progress(f"Choosing packages for {platform.name}, Python {python}", 1)
        progress.show(0, "(pip looks up what depends on what; this can take a minute)")
        chosen = wheels.resolve(wanted, platform, python)
        progress.end(f"{len(chosen)} packages")
        _look_at_torch(chosen, order.gpu)
        targets.append((platform, python, chosen))
    return Plan(clone, out, targets, packed)


def _look_at_torch(chosen: Sequence[Wheel], gpu: str) -> None:
    """The index decides which build of torch there is; one that does not suit is refused or told."""
    (torch,) = [wheel for wheel in chosen if wheel.name == "torch"]
    if gpu == "cuda" and torch.version.endswith("+cpu"):
        raise KitError(
            f"The index that pip uses offers torch {torch.version}, which uses no GPU; point pip at one "
            "with CUDA builds, or leave --gpu out."
        )
    unused = [wheel for wheel in chosen if wheel.name.startswith("nvidia-")]
    if gpu == "none" and unused:
        print(
            f"  The index that pip uses has no CPU build of torch for this platform: {len(unused)} CUDA "
            "packages of several GB come along unused. To avoid that, set PIP_EXTRA_INDEX_URL to an index "
            "that has CPU builds."
        )


def _tell_size(plan: Plan, archive: bool) -> None:
    """Say what is still to come and how large the kit will be. Raises KitError on too small a disk."""
    lacking = {wheel.file for wheel in wheels.missing(plan.wheels, plan.out / "wheels")}
    known = wheels.sizes(plan.wheels)
    copied = sum((plan.clone / path).stat().st_size for path in project.sources(plan.clone))
    copied += sum(path.stat().st_size for source in plan.models for path in source.paths)
    total = copied + sum(known.values())
    unknown = len(plan.wheels) - len(known)
    least = files.megabytes(total)
    if unknown:
        least = f"at least {least} ({unknown} sizes unknown)"
    to_fetch = sum(nbytes for file, nbytes in known.items() if file in lacking)
    print(f"The kit will take {least}; {files.megabytes(to_fetch)} are to be fetched.", flush=True)
    have = sum(path.stat().st_size for path in plan.out.rglob("*") if path.is_file())
    files.need_room(plan.out, total * (2 if archive else 1) - have, "The kit")


def _fill(plan: Plan) -> None:
    for platform, python, chosen in plan.targets:
        progress = Progress(f"Fetching packages for {platform.name}, Python {python}", len(chosen))
        wheels.fetch(chosen, plan.out / "wheels", platform, python, progress)
        progress.end(f"{len(chosen)} packages")
    for name in project.sources(plan.clone):
        _bring(plan.clone / name, plan.out / "lab" / name)
    for source in plan.models:
        for path in source.paths:
            _bring(path, plan.out / source.model.folder / path.name)
    _bring(Path(launcher.__file__), plan.out / "install.py")
    platforms = sorted({platform.name for platform, *_ in plan.targets})
    pythons = sorted({python for _, python, _ in plan.targets})
    text = _READ_ME.format(platforms=" and ".join(platforms), pythons=" or ".join(pythons))
    files.write_whole(plan.out / "READ-ME-FIRST.txt", text)
    _remove_others(plan)


def _bring(source: Path, target: Path) -> None:
    """Copy a file where the kit lacks it or has another."""
    if not files.is_right(target, files.digest(source)):
        files.copy_whole(source, target)


def _belongs(plan: Plan) -> set[str]:
    """Paths of all files that the kit is to have."""
    belongs = {f"wheels/{wheel.file}" for wheel in plan.wheels}
    belongs |= {f"lab/{path}" for path in project.sources(plan.clone)}
    belongs |= {f"{source.model.folder}/{path.name}" for source in plan.models for path in source.paths}
    return belongs | {"install.py", "READ-ME-FIRST.txt"}


def _remove_others(plan: Plan) -> None:
    """An earlier build's packages and parts must not travel along."""
    for path in set(manifest.present(plan.out)) - _belongs(plan):
        (plan.out / path).unlink()
    shutil.rmtree(plan.out / f"wheels{files.PART}", ignore_errors=True)


def _list(plan: Plan, order: Order, made_by: str) -> Manifest:
    """Write the kit's list; from then on it is finished."""
    made = Manifest(
        lab=labcore.__version__,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        made_by=made_by,
        targets=[_target(plan.out, order.gpu, *target) for target in plan.targets],
        models=[source.model for source in plan.models],
        files=manifest.entries(plan.out, _belongs(plan)),
    )
    manifest.write(plan.out, made)
    return made


def _target(out: Path, gpu: str, platform: Platform, python: str, chosen: Sequence[Wheel]) -> Target:
    return Target(
        platform=platform.name,
        python=python,
        gpu=gpu,
        wheels=[wheel.file for wheel in chosen],
        packages={wheel.name: wheel.version for wheel in chosen},
        installed_bytes=sum(environment.installed_bytes(out / "wheels" / wheel.file) for wheel in chosen),
    )


def pack(kit: Path) -> Path:
    """One .tar of a kit beside it, with its checksum in a file that `sha256sum --check` reads."""
    tar = kit.with_name(kit.name + ".tar")
    with replacing(tar) as part, tarfile.open(part, "w") as archive:  # wheels are compressed already
        archive.add(kit, kit.name)
    files.write_whole(tar.with_name(tar.name + ".sha256"), f"{files.digest(tar)}  {tar.name}\n")
    return tar
