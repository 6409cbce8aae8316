"""A server in a process of its own, or one that runs already, and how its process stands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from labcore.errors import ConfigError
from labcore.serving.hosts import host_of, is_loopback
from labcore.serving.load.client import LoadTestError
from labcore.serving.server.descriptors import open_descriptors
from labcore.serving.soak.verdict import Standing

DESCRIPTORS = 1024  # what a server of ours may open: the usual limit, which an attacker can exceed
END_S = 20.0


@dataclass
class Target:
    """A server. process: None where it is somebody else's."""

    url: str
    process: subprocess.Popen[str] | None = None
    log: Path | None = None

    @property
    def place(self) -> tuple[str, int]:
        """Its host and port."""
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or 80

    def standing(self) -> Standing:
        """Its memory, descriptors and log now."""
        if self.process is None:
            return Standing()
        pid = self.process.pid
        size = self.log.stat().st_size if self.log else None
        return Standing(resident_bytes(pid), open_descriptors(pid) if _tells(pid) else None, size)

    def signal(self, which: signal.Signals) -> None:
        """Send its process a signal."""
        assert self.process is not None
        self.process.send_signal(which)


def resident_bytes(pid: int) -> int | None:
    """What another process holds of the memory; None where the system does not tell."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _tells(pid: int) -> bool:
    return Path(f"/proc/{pid}/fd").exists()


def existing(url: str) -> Target:
    """A server that runs already. Raises ConfigError for one that is not on this machine's loopback."""
    whole = url if "://" in url else f"http://{url}"
    try:
        name = host_of(urlsplit(whole).netloc)
    except ValueError:
        name = None
    if name is None or not is_loopback(name):
        raise ConfigError(
            f"{url} is not on this machine; a soak attacks loopback only, such as 127.0.0.1:8000."
        )
    return Target(whole.rstrip("/").removesuffix("/v1"))


@contextmanager
def started(model: str, options: Sequence[str] = (), descriptors: int = DESCRIPTORS) -> Iterator[Target]:
    """`labcore serve` on a free port, gone afterwards. Raises LoadTestError where it does not start."""
    if sys.platform == "win32":
        raise LoadTestError("Windows cannot stop and continue a server; start one and give its --url.")
    command = [sys.executable, "-m", "labcore.cli", "serve", model, "--port", "0", *options]
    with tempfile.TemporaryDirectory(prefix="labcore-soak-") as folder:
        log = Path(folder) / "log"
        with (
            log.open("w", encoding="utf-8") as kept,
            subprocess.Popen(
                command, text=True, stdout=subprocess.PIPE, stderr=kept, preexec_fn=_limited(descriptors)
            ) as process,
        ):
            try:
                assert process.stdout is not None
                banner = process.stdout.readline()
                url = next((word for word in banner.split() if word.startswith("http")), None)
                if url is None:
                    said = log.read_text(encoding="utf-8").strip().splitlines()
                    raise LoadTestError(f"labcore serve {model} did not start: {(said or ['no word'])[-1]}")
                yield Target(url.rstrip(",").removesuffix("/v1"), process, log)
            finally:
                process.send_signal(signal.SIGCONT)  # one that is stopped could not end
                process.kill()


def _limited(descriptors: int) -> Callable[[], None]:
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = descriptors if hard == resource.RLIM_INFINITY else min(descriptors, hard)
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
