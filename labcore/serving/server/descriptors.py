"""How many connections a process has file descriptors for."""

from __future__ import annotations

import os
import sys

RESERVE = 192  # for files, pipes, and connections that were accepted and are not counted yet
FEWEST = 8
UNKNOWN = 64  # open descriptors, where the system does not list them


def room_for(connections: int) -> int:
    """So many of these connections can be open at once; raises the soft limit of this process for them.

    Never less than FEWEST, even where that is too many: what cannot be accepted then waits.
    """
    if sys.platform == "win32":  # sockets are no file descriptors there
        return connections
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return connections
    taken = open_descriptors() + RESERVE
    wanted = taken + connections if hard == resource.RLIM_INFINITY else min(taken + connections, hard)
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (OSError, ValueError):  # some systems allow less than their hard limit says
            pass
    return min(connections, max(soft - taken, FEWEST))


def open_descriptors(pid: int | None = None) -> int:
    """Of a process (default: this one); UNKNOWN where the system does not tell."""
    for folder in (f"/proc/{pid or 'self'}/fd", *(() if pid else ("/dev/fd",))):
        try:
            return len(os.listdir(folder))
        except OSError:
            continue
    return UNKNOWN
