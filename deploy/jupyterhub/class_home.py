"""The one thing that root does about a learner's home: making the folder itself, in a folder that root owns.

What lies in a home belongs to the learner, who may put links there. So root opens, copies and changes nothing
in it; the lessons are copied by `deploy/container/start.sh`, after the process has become the learner.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path


class HomeRefused(Exception):
    """A home that is not safe to use. The learner and the hub's log read its one sentence."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.jupyterhub_message = sentence


def make_home(homes: Path, name: str, first_uid: int) -> int:
    """Make sure that a learner has a home that nobody else enters; returns the learner's uid and gid.

    As root: the owner of a home is the record of a learner's uid, so it stays the same, and no new learner
    gets one that a home still has; new ones count from first_uid. Not as root: -1, all share this account.
    Raises HomeRefused where the entry is a link, no folder, or belongs to somebody who is no learner.
    """
    if not name or "/" in name or "\0" in name or set(name) == {"."}:
        raise HomeRefused(f"{name!r} is no name of a folder; log in with another name.")
    parent = _opened(homes)
    try:
        owner = _uid(parent, name, first_uid) if os.geteuid() == 0 else -1
        if not _exists(parent, name):
            os.mkdir(name, 0o700, dir_fd=parent)
        _give(parent, name, owner)
        return owner
    except OSError as error:
        raise HomeRefused(
            f"The home of {name} is no folder that can be used ({error.strerror}); tell who runs the class."
        ) from None
    finally:
        os.close(parent)


def _opened(homes: Path) -> int:
    """The folder of all homes; its descriptor stays the same folder whatever happens to the name."""
    try:
        parent = os.open(homes, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise HomeRefused(f"{homes} cannot be opened ({error.strerror}); tell who runs the class.") from None
    status = os.fstat(parent)
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        os.close(parent)
        raise HomeRefused(f"Others than the hub may change {homes}; tell who runs the class.")
    return parent


def _exists(parent: int, name: str) -> bool:
    try:
        os.lstat(name, dir_fd=parent)
    except FileNotFoundError:
        return False
    return True


def _uid(parent: int, name: str, first: int) -> int:
    """Of the home's owner; for a new home, or one that root has just made, one that no home has."""
    with os.scandir(parent) as found:
        owners = {one.name: one.stat(follow_symlinks=False).st_uid for one in found}
    mine = owners.pop(name, 0)
    if mine == 0:
        return max([first, *(uid + 1 for uid in owners.values())])
    if mine < first:
        raise HomeRefused(f"The home of {name} belongs to user {mine}, no learner; tell who runs the class.")
    if mine in owners.values():
        raise HomeRefused(f"Two homes belong to user {mine}, one of them {name}'s; tell who runs the class.")
    return mine


def _give(parent: int, name: str, owner: int) -> None:
    """Owner and mode of the folder itself. A link is not followed. Raises OSError."""
    home = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    try:
        os.fchown(home, owner, owner)  # -1 leaves them
        if stat.S_IMODE(os.fstat(home).st_mode) != 0o700:
            os.fchmod(home, 0o700)
    finally:
        os.close(home)
