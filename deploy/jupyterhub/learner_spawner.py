"""One process for each learner, under a user id of its own that needs no account on the machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from class_home import make_home
from jupyterhub.spawner import LocalProcessSpawner
from traitlets import Integer, Unicode


class LearnerSpawner(LocalProcessSpawner):
    """Starts a learner's server in the learner's home. Not as root, all learners share the hub's account."""

    homes = Unicode(help="The folder of all homes; who is no learner needs to pass through it.").tag(
        config=True
    )
    first_uid = Integer(70_000, help="User ids from here on belong to learners.").tag(config=True)

    @property
    def home(self) -> Path:
        """Of this learner."""
        return Path(self.homes) / str(self.user.name)

    def make_preexec_fn(self, name: str) -> Callable[[], None]:
        """Become the learner, in the learner's home. Raises HomeRefused."""
        owner, home = make_home(Path(self.homes), str(self.user.name), self.first_uid), self.home

        def become() -> None:
            if owner >= 0:
                os.umask(0o022)  # what is shared on the wall, others read and do not write
                os.setgroups([])
                os.setgid(owner)
                os.setuid(owner)
            os.chdir(home)

        return become

    def user_env(self, env: dict[str, str]) -> dict[str, str]:
        """Where the learner is at home."""
        name = str(self.user.name)
        return env | {"HOME": str(self.home), "USER": name, "LOGNAME": name, "SHELL": "/bin/bash"}
