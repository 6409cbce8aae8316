"""One process for each learner, under a user id of its own that needs no account on the machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from jupyterhub.spawner import LocalProcessSpawner
from labcore_class import prepare_home
from traitlets import Integer, Unicode


class LearnerSpawner(LocalProcessSpawner):
    """Starts a learner's server in the learner's home. Not as root, all learners share the hub's account."""

    homes = Unicode(help="The folder of all homes; who is no learner needs to pass through it.").tag(
        config=True
    )
    lessons = Unicode(help="Where the lessons are copied from.").tag(config=True)
    first_uid = Integer(70_000, help="User ids from here on belong to learners.").tag(config=True)

    @property
    def home(self) -> Path:
        """Of this learner."""
        return Path(self.homes) / str(self.user.name)

    @property
    def owner(self) -> int:
        """The learner's uid and gid, the same at every start; -1 where this is not root."""
        return self.first_uid + int(self.user.id) if os.geteuid() == 0 else -1

    def make_preexec_fn(self, name: str) -> Callable[[], None]:
        """Become the learner, in the learner's home."""
        owner, home = self.owner, self.home
        prepare_home(home, Path(self.lessons), owner)

        def become() -> None:
            if owner >= 0:
                os.setgroups([])
                os.setgid(owner)
                os.setuid(owner)
            os.chdir(home)

        return become

    def user_env(self, env: dict[str, str]) -> dict[str, str]:
        """Where the learner is at home."""
        name = str(self.user.name)
        return env | {"HOME": str(self.home), "USER": name, "LOGNAME": name, "SHELL": "/bin/bash"}
