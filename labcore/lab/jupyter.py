"""Start JupyterLab on the lessons: trusted, offline, and with this interpreter's own kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from labcore.errors import LessonError

# JupyterLab asks two servers for news and updates unless it is told not to; the files here tell it.
_CONFIGURATION = Path(__file__).parent / "jupyter_config"

# A kernel reports its unencrypted sockets (they are on the loopback) and its own shutdown; what a lesson does
# wrong is in its outputs.
KERNEL_ARGUMENTS = ["--IPKernelApp.log_level=CRITICAL"]

# A kernel that the user installed under the name "python3" must not replace this interpreter's own.
_OWN_KERNELS = {"JUPYTER_PREFER_ENV_PATH": "1"}


def trust(notebooks: Sequence[Path], env: Mapping[str, str] | None = None) -> None:
    """Sign notebooks, so that their widgets show before the first run. Raises LessonError on failure."""
    words = [sys.executable, "-m", "jupyter", "trust", *map(str, notebooks)]
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no reason given"]
        raise LessonError(f"jupyter trust failed ({reason[0]}); install the extra 'lab' again.")


def command(notebook: Path, *, browser: bool = True, port: int | None = None) -> list[str]:
    """The command line that opens one notebook in JupyterLab, with its folder as the root."""
    words = [sys.executable, "-m", "jupyter", "lab", str(notebook)]
    words.append(f"--LabApp.default_url=/lab/tree/{notebook.name}")  # the printed address opens it, too
    if not browser:
        words.append("--no-browser")
    if port is not None:
        words += [f"--port={port}", "--ServerApp.port_retries=0"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:  # as in most containers; Jupyter refuses root unasked
        words.append("--allow-root")
    return words


def become(words: list[str]) -> NoReturn:
    """Turn this process into JupyterLab, so that Ctrl-C reaches it alone and it ends its kernels itself."""
    os.execve(words[0], words, environment())


def environment() -> dict[str, str]:
    """This process's environment, with this interpreter's kernels first and JupyterLab kept offline.

    Its commands come first, too, so that a terminal in JupyterLab knows `labcore`.
    """
    configs = [str(_CONFIGURATION), *filter(None, [os.environ.get("JUPYTER_CONFIG_PATH")])]
    commands = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    own = {"JUPYTER_CONFIG_PATH": os.pathsep.join(configs), "PATH": os.pathsep.join(commands)}
    return {**os.environ, **_OWN_KERNELS, **own}


@contextmanager
def kernel_environment(results: Path) -> Iterator[None]:
    """While it lasts, kernels started here are this interpreter's and keep results in `results`."""
    changes = {**_OWN_KERNELS, "LABCORE_RESULTS": str(results.resolve())}
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
