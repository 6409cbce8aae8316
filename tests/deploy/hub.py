"""A real JupyterHub on the loopback, configured as it is shipped, with all its traces in one folder."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

CONFIG = Path(__file__).parents[2] / "deploy" / "jupyterhub" / "jupyterhub_config.py"
START_S, STOP_S, GRACE_S = 180, 120, 10
CODE = "swordfish"  # of the class


@dataclass
class Hub:
    """root: where the class lives. python: what learners run. Three ports of the loopback."""

    root: Path
    python: str
    at_once: int
    ports: tuple[int, int, int]
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Where learners go."""
        return f"http://127.0.0.1:{self.ports[0]}"

    def start(self) -> None:
        """Returns once the login page is there."""
        public, hub, proxy = self.ports
        config = self.root / "config.py"
        config.write_text(
            f"load_subconfig({str(CONFIG)!r})\n"
            f"c.JupyterHub.hub_bind_url = 'http://127.0.0.1:{hub}'\n"
            f"c.ConfigurableHTTPProxy.api_url = 'http://127.0.0.1:{proxy}'\n"
            f"c.Spawner.environment['LD_LIBRARY_PATH'] = {str(libraries(self.python))!r}\n",
            encoding="utf-8",
        )
        own = {
            "LABCORE_CLASS_ROOT": str(self.root / "class"),
            "LABCORE_CLASS_BIND": f"http://127.0.0.1:{public}",
            "LABCORE_CLASS_AT_ONCE": str(self.at_once),
            "LABCORE_CLASS_PYTHON": self.python,
            "LABCORE_CLASS_CODE": CODE,
            "LD_LIBRARY_PATH": str(libraries(self.python)),
        }
        with (self.root / "hub.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jupyterhub", "-f", str(config)],
                env=os.environ | own, cwd=self.root, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        until = time.monotonic() + START_S
        while not self._answers():
            assert self.runs(), self.log()
            assert time.monotonic() < until, self.log()
            time.sleep(0.3)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.address}/hub/login", trust_env=False, timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def runs(self) -> bool:
        """Whether the hub itself does."""
        return self.process is not None and self.process.poll() is None

    def log(self) -> str:
        """The end of what the hub, the proxy and all servers wrote."""
        return (self.root / "hub.log").read_text(encoding="utf-8", errors="replace")[-6000:]

    def stop(self) -> list[list[str]]:
        """As the system ends a service: the hub ends the servers and the proxy. Returns the commands of what
        nevertheless runs on, and ends that too."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(STOP_S)
        _, left = psutil.wait_procs(self.processes(), timeout=GRACE_S)
        commands = [process.cmdline() for process in left]
        for process in left:
            process.kill()
        return commands

    def processes(self) -> list[psutil.Process]:
        """Whatever runs of this class: hub, proxy, culler, servers, kernels."""
        found = []
        for process in psutil.process_iter():
            try:
                words, folder = " ".join(process.cmdline()), process.cwd()
            except psutil.Error:
                continue
            if str(self.root) in words or str(self.ports[0]) in words or folder.startswith(str(self.root)):
                found.append(process)
        return found

    def open_ports(self) -> list[int]:
        """Of the three, those on which somebody still listens."""
        return [port for port in self.ports if _listens(port)]


def libraries(python: str) -> Path:
    """Where the shared library of a copied Python lies; its own path may lead into somebody's home."""
    return Path(python).parents[1] / "lib"


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_ports(n: int) -> tuple[int, ...]:
    """Ports of the loopback that nobody uses."""
    probes = [socket.socket() for _ in range(n)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return tuple(int(probe.getsockname()[1]) for probe in probes)
    finally:
        for probe in probes:
            probe.close()
