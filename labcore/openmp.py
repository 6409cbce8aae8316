"""OpenMP's threads: how they wait, and none of them in a forked process.

How they wait has to be said before torch loads its runtime.

PyTorch's operators, and each call of the native kernels, end where all threads have finished. A thread that
waits there spins, by default for milliseconds: that costs nothing on a quiet machine, and on one whose cores
other programs use too it takes the core from the very thread that is waited for. So `labcore` lets threads
sleep, unless torch was imported before it or the environment says something of its own. The barriers inside
the native kernels, hundreds of them a step, have a way to wait of their own (`kernels/native/threads.c`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping

SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def wait_passively(environ: MutableMapping[str, str] = os.environ) -> bool:
    """Let threads that wait sleep (OMP_WAIT_POLICY=passive). Returns whether that was set now.

    Processes started from this one inherit it. Where OMP_WAIT_POLICY, GOMP_SPINCOUNT or KMP_BLOCKTIME is set
    already, or torch has loaded its threads, nothing changes.
    """
    if "torch" in sys.modules or any(name in environ for name in SETTINGS):
        return False
    environ["OMP_WAIT_POLICY"] = "passive"
    return True


def compute_alone_after_fork() -> None:
    """Let a forked process compute with one thread.

    The runtime's other threads are not copied by a fork, and GNU's waits for them: without this, the first
    product of a `multiprocessing` worker on Linux, where processes fork before Python 3.14, never ends.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_one_thread)


def _one_thread() -> None:
    if (torch := sys.modules.get("torch")) is not None and hasattr(torch, "set_num_threads"):
        torch.set_num_threads(1)


def wait_policy(environ: MutableMapping[str, str] = os.environ) -> str:
    """What the environment says of waiting threads, such as "OMP_WAIT_POLICY=passive"; "" if nothing."""
    return ", ".join(f"{name}={environ[name]}" for name in SETTINGS if name in environ)
