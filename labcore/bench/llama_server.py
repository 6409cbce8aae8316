"""llama.cpp's own server as a peer: parallel slots, continuous batching, the very same weights."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from labcore.errors import LabError
from labcore.model import Model
from labcore.model.gguf_writing import write_gguf
from labcore.serving.workload import Workload

READY_S = 60


def binary() -> str:
    """Where it is: LLAMA_SERVER, or on the PATH. Raises LabError where it is not."""
    found = os.environ.get("LLAMA_SERVER") or shutil.which("llama-server")
    if not found:
        raise LabError(
            "llama.cpp's server is not here; put llama-server on the PATH or its path into LLAMA_SERVER, or "
            "leave llama.cpp out of --against."
        )
    return found


@contextmanager
def running(model: Model, slots: int, context: int) -> Iterator[str]:
    """Its URL, with so many slots of `context` tokens each; stopped and gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="labcore-gguf-") as folder:
        path = write_gguf(model, Path(folder) / "f32.gguf", "f32")
        port, threads = _free_port(), str(torch.get_num_threads())
        command = [
            binary(), "-m", str(path), "--host", "127.0.0.1", "--port", str(port), "-np", str(slots),
            "-c", str(slots * context), "-t", threads, "-tb", threads, "--cont-batching",
            "-ctk", "f32", "-ctv", "f32", "--no-webui", "--no-warmup",
        ]  # fmt: skip
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                _wait(process, f"http://127.0.0.1:{port}")
                yield f"http://127.0.0.1:{port}"
            finally:
                process.kill()


def serve(url: str, workload: Workload) -> tuple[float, int]:
    """(seconds, output tokens) until all requests of a workload, sent at once, are answered."""
    return asyncio.run(_serve(url, workload))


async def _serve(url: str, workload: Workload) -> tuple[float, int]:
    import httpx

    async def ask(client: httpx.AsyncClient, prompt: tuple[int, ...], tokens: int) -> int:
        body = {
            "prompt": list(prompt), "n_predict": tokens, "temperature": 0, "ignore_eos": True,
            "cache_prompt": False,
        }  # fmt: skip
        answer = await client.post(f"{url}/completion", json=body)
        answer.raise_for_status()
        return int(answer.json()["tokens_predicted"])

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=None, limits=limits) as client:
        start = time.perf_counter()
        counts = await asyncio.gather(*(ask(client, one.prompt, one.output_tokens) for one in workload))
        return time.perf_counter() - start, sum(counts)


def _wait(process: subprocess.Popen[bytes], url: str) -> None:
    import httpx

    until = time.monotonic() + READY_S
    while time.monotonic() < until:
        if process.poll() is not None:
            raise LabError(f"llama.cpp's server ended with code {process.returncode} before it was ready.")
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise LabError(f"llama.cpp's server was not ready after {READY_S} s; is the model too large for it?")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
