"""OpenMP's threads: how long they spin while they wait, and none of them in a forked process.

How long is to be said before torch loads its runtime.

PyTorch's operators (and every parallel region of the native kernels) end where all threads have finished. A
thread that waits there spins, by default for milliseconds: that costs nothing on a quiet machine, and on one
whose cores other programs use too it takes the core from the very thread that is waited for. `labcore` bounds
the spinning when it is imported, unless torch was imported before or the environment says something of its
own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping

# Turns of libgomp's waiting loop, a few to a few tens of nanoseconds each; its own default is 300,000.
GOMP_SPINCOUNT = "2000"
# Milliseconds of LLVM's and Intel's runtimes, whose default is 200; 1 is the shortest time but none.
KMP_BLOCKTIME = "1"

_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def bound_spinning(environ: MutableMapping[str, str] = os.environ) -> bool:
    """Let waiting threads spin for microseconds, then sleep. Returns whether that was set now.

    Processes started from this one inherit it. Where one of OMP_WAIT_POLICY, GOMP_SPINCOUNT and KMP_BLOCKTIME
    is set already, or torch has loaded its threads, nothing changes.
    """
    if "torch" in sys.modules or any(name in environ for name in _SETTINGS):
        return False
    environ.update(GOMP_SPINCOUNT=GOMP_SPINCOUNT, KMP_BLOCKTIME=KMP_BLOCKTIME)
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
    """What the environment says of waiting threads, such as "GOMP_SPINCOUNT=2000"; "" if nothing."""
    return ", ".join(f"{name}={environ[name]}" for name in _SETTINGS if name in environ)
