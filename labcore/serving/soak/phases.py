"""The phases of a soak, one after the other."""

from __future__ import annotations

import asyncio
import multiprocessing
import re
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx

from labcore.serving.soak import attacks
from labcore.serving.soak.crowd import TOKENS, Crowd, Stream, gathered
from labcore.serving.soak.process import DESCRIPTORS, END_S, Target, existing, started
from labcore.serving.soak.verdict import CALM, Phase, attacked, judged

OnPhase = Callable[[Phase], None]


@dataclass(frozen=True)
class Soak:
    """How much of each. clients, seconds: of the first load. beside, attack_s: clients beside each attack.

    stopped_s: for which the server is stopped. grace_s: of the server that is ended. blocks: of the pool that
    preempts. names: the attacks.
    """

    clients: int = 200
    seconds: float = 120.0
    beside: int = 8
    attack_s: float = 15.0
    stopped_s: float = 5.0
    grace_s: float = 10.0
    blocks: int = 32
    tokens: int = TOKENS
    idle: int = 2 * DESCRIPTORS
    names: tuple[str, ...] = tuple(attacks.ATTACKS)

    def quick(self) -> Soak:
        """The same in about a minute: it shows that all works, and measures nothing."""
        return replace(self, clients=32, seconds=5.0, beside=4, attack_s=2.0, stopped_s=1.0, grace_s=2.0)


def run_soak(
    soak: Soak, model: str = "story", url: str | None = None, on_phase: OnPhase | None = None
) -> list[Phase]:
    """All phases; a server that was started by others is neither stopped nor ended.

    on_phase: told of each as it ends. Raises ConfigError for an address beyond loopback, LoadTestError where
    no server answers.
    """
    phases: list[Phase] = []

    def keep(phase: Phase) -> None:
        phases.append(phase)
        if on_phase:
            on_phase(phase)

    asyncio.run(_others(soak, existing(url), keep) if url else _own(soak, model, keep))
    return phases


async def _others(soak: Soak, target: Target, keep: OnPhase) -> None:
    async with gathered(target.url, soak.tokens) as crowd:
        await _loaded_and_attacked(soak, target, crowd, keep)


async def _own(soak: Soak, model: str, keep: OnPhase) -> None:
    with started(model, ["--grace", str(soak.grace_s)]) as target:
        async with gathered(target.url, soak.tokens) as crowd:
            await _loaded_and_attacked(soak, target, crowd, keep)
            keep(await stopped_and_continued(soak, target, crowd))
            keep(await ended(soak, target, crowd))
            known = crowd.known
    with started(model, ["--num-blocks", str(soak.blocks)]) as target:
        async with gathered(target.url, soak.tokens) as crowd:
            keep(await preempted(soak, target, replace(crowd, known=known)))


async def _loaded_and_attacked(soak: Soak, target: Target, crowd: Crowd, keep: OnPhase) -> None:
    keep(await loaded(soak, target, crowd))
    with _attacker() as process:
        for name in soak.names:
            calm, under = await beside(soak, target, crowd, name, process)
            keep(calm)
            keep(under)


@contextmanager
def _attacker() -> Iterator[Executor]:
    """A process that is ready."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        process.submit(attacks.nothing).result()
        yield process


@asynccontextmanager
async def _load(crowd: Crowd, users: int, *, half_leave: bool = False) -> AsyncIterator[list[Stream]]:
    """Clients while the block runs; afterwards the list holds their answers."""
    streams: list[Stream] = []
    stop = asyncio.Event()
    task = asyncio.create_task(crowd.stay(users, stop, half_leave=half_leave))
    try:
        yield streams
    finally:
        stop.set()
        streams += await task


async def loaded(soak: Soak, target: Target, crowd: Crowd) -> Phase:
    """Many clients, half of whom leave in the middle of their answers."""
    before = target.standing()
    async with _load(crowd, soak.clients, half_leave=True) as streams:
        await asyncio.sleep(soak.seconds)
    name = f"{soak.clients} clients, half leaving"
    return judged(name, streams, crowd.known, before=before, after=target.standing())


async def beside(
    soak: Soak, target: Target, crowd: Crowd, name: str, process: Executor
) -> tuple[Phase, Phase]:
    """A moderate load without an attack, and the same one beside it."""
    before = target.standing()
    async with _load(crowd, soak.beside) as streams:
        await asyncio.sleep(soak.attack_s)
    calm = judged(CALM + name, streams, crowd.known, before=before, after=target.standing())
    async with _load(crowd, soak.beside) as streams:
        seen: dict[str, int] = await asyncio.get_running_loop().run_in_executor(
            process, attacks.attack, name, *target.place, crowd.model, soak.idle, soak.attack_s
        )
    answered = seen.pop(attacks.ANSWERED, 0)
    under = judged(name, streams, crowd.known, before=calm.after, after=target.standing(), notes=seen)
    return calm, attacked(under, calm, answered)


async def stopped_and_continued(soak: Soak, target: Target, crowd: Crowd) -> Phase:
    """SIGSTOP, some seconds, SIGCONT: answers go on where they were."""
    async with _load(crowd, soak.beside) as streams:
        await asyncio.sleep(1)
        target.signal(signal.SIGSTOP)
        await asyncio.sleep(soak.stopped_s)
        target.signal(signal.SIGCONT)
        await asyncio.sleep(1)
    return judged(f"stopped for {soak.stopped_s:g} s", streams, crowd.known, after=target.standing())


async def ended(soak: Soak, target: Target, crowd: Crowd) -> Phase:
    """SIGTERM under load: what runs is finished, or told that it is aborted; nothing is left."""
    assert target.process is not None
    async with _load(crowd, soak.beside) as streams:
        await asyncio.sleep(1)
        begin = time.perf_counter()
        target.signal(signal.SIGTERM)
    code = await asyncio.to_thread(_exit_code, target.process, soak.grace_s + END_S)
    notes = {"exit code": code, "seconds": round(time.perf_counter() - begin, 1)}
    told = [stream for stream in streams if stream.error is None or not _was_told(stream.error)]
    phase = judged(
        "SIGTERM under load", told, crowd.known, notes=notes | {"aborted": len(streams) - len(told)}
    )
    return phase.blamed(
        "" if code == 0 else f"it ended with code {code}",
        f"port {target.place[1]} still answers" if await _answers(target.place) else "",
    )


async def preempted(soak: Soak, target: Target, crowd: Crowd) -> Phase:
    """A pool that is too small for those who run: some wait again, and no word changes."""
    async with _load(crowd, 4 * soak.beside) as streams:
        await asyncio.sleep(soak.attack_s)
    count = preemptions((await crowd.http.get("/metrics")).text)
    phase = judged(
        f"a pool of {soak.blocks} blocks", streams, crowd.known, after=target.standing(),
        notes={"preemptions": count},
    )  # fmt: skip
    return phase.blamed("" if count else "nothing was preempted; give fewer blocks")


def preemptions(metrics: str) -> int:
    """The count in Prometheus' text."""
    values = re.findall(r"^labcore:num_preemptions(?:_total)?\{[^}]*\} (\S+)$", metrics, re.MULTILINE)
    return int(float(values[0])) if values else 0


def _was_told(kind: str) -> bool:
    """Whether the server itself said why an answer ended, or refused a new one at its closed door."""
    return kind == "error in the stream" or kind.startswith("http 503") or kind == "ConnectError"


def _exit_code(process: subprocess.Popen[Any], seconds: float) -> int | None:
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


async def _answers(place: Sequence[Any]) -> bool:
    try:
        async with httpx.AsyncClient(trust_env=False) as http:
            await http.get(f"http://{place[0]}:{place[1]}/health", timeout=2)
    except httpx.HTTPError:
        return False
    return True
