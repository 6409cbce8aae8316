"""The machines a kit can be made for, and which of its targets fits this one. Standard library only."""

from __future__ import annotations

import platform
import shutil
import socket
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass

from labcore.errors import KitError
from labcore.kit.manifest import Target

_SYSTEMS = {"Linux": "linux", "Darwin": "macos", "Windows": "windows"}
_GLIBC = 28  # the oldest torch still runs on is glibc 2.28
_MACOS = 14


@dataclass(frozen=True)
class Platform:
    """A kind of machine: the tags of wheels it takes, best first, and what dependencies ask about it."""

    name: str
    tags: tuple[str, ...]
    markers: dict[str, str]
    system: str  # what must be at least `needs`
    needs: tuple[int, int]


def _linux(machine: str) -> Platform:
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(_GLIBC, 4, -1)]
    tags += [f"{old}_{machine}" for old in ("manylinux2014", "manylinux2010", "manylinux1", "linux")]
    markers = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": machine}
    return Platform(f"linux-{machine}", tuple(tags), markers, "glibc", (2, _GLIBC))


def _macos(machine: str) -> Platform:
    markers = {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": machine}
    return Platform(f"macos-{machine}", (f"macosx_{_MACOS}_0_{machine}",), markers, "macOS", (_MACOS, 0))


PLATFORMS = {known.name: known for known in (_linux("x86_64"), _linux("aarch64"), _macos("arm64"))}


def this_platform() -> str:
    """This machine's name in the manner of PLATFORMS, which need not hold it."""
    system = _SYSTEMS.get(platform.system(), platform.system().lower())
    machine = platform.machine().lower()
    same = {"amd64": "x86_64", "arm64": "aarch64"} if system == "linux" else {"amd64": "x86_64"}
    return f"{system}-{same.get(machine, machine)}"


def this_python() -> str:
    """This interpreter's version as kits name it, such as 3.11."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def choose(targets: Sequence[Target]) -> Target:
    """The target made for this machine. Raises KitError: another platform or Python, a system too old."""
    here, python = this_platform(), this_python()
    fitting = [target for target in targets if target.platform == here]
    if not fitting:
        raise KitError(
            f"This kit is for {' and '.join(sorted({target.platform for target in targets}))} and this "
            f"machine is {here}; {_how_to_get(here)}."
        )
    if not _is_plain_cpython():
        raise KitError(
            f"{sys.executable} is {platform.python_implementation()} of an unusual kind (not CPython, or "
            "without its global lock), for which the kit has no packages; run it with the usual Python."
        )
    for target in fitting:
        if target.python == python:
            _need_system(PLATFORMS[here])
            _need_venv()
            return target
    raise KitError(_other_python(sorted({target.python for target in fitting}), python))


def _how_to_get(here: str) -> str:
    if here in PLATFORMS:
        return f"where there is a network, build one with: labcore kit build --platform {here}"
    return f"kits exist for {', '.join(PLATFORMS)} only, so use another machine, or a lab on a server"


def _is_plain_cpython() -> bool:
    return sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED")


def _other_python(have: list[str], python: str) -> str:
    found = [path for version in have if (path := shutil.which(f"python{version}"))]
    mend = f"run it with {found[0]}" if found else f"install Python {have[-1]}"
    return (
        f"This kit brings packages for Python {' and '.join(have)} and this is Python {python}; {mend}, or "
        f"build a kit with --python {python}."
    )


def _need_system(wanted: Platform) -> None:
    """Wheels are built for a C library or macOS of some age; an older one cannot load them."""
    version = platform.libc_ver()[1] if wanted.system == "glibc" else platform.mac_ver()[0]
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < wanted.needs:
        least = ".".join(map(str, wanted.needs))
        raise KitError(
            f"The kit's packages need {wanted.system} {least} or later and this system has "
            f"{version or 'none'}; use a newer system."
        )


def _need_venv() -> None:
    try:
        import venv  # noqa: F401
    except ImportError:
        raise KitError(
            f"{sys.executable} has no module venv, which makes the lab's environment; install it (on Debian "
            "and Ubuntu: apt-get install python3-venv) or use another Python."
        ) from None


def has_loopback() -> bool:
    """Whether programs of this machine can reach each other at 127.0.0.1, as Jupyter and its kernels must."""
    with socket.socket() as server, socket.socket() as client:
        try:
            server.bind(("127.0.0.1", 0))
            server.listen()
            client.settimeout(5)
            client.connect(server.getsockname())
        except OSError:
            return False
    return True
