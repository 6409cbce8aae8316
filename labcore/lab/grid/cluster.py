"""A grid over a dask cluster: one lesson at a time on each worker, and again elsewhere when one dies."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from labcore.errors import LessonError
from labcore.lab.grid.jobs import Job, Outcome, blank, code_version, perform

if TYPE_CHECKING:
    from distributed import Client, Future

Say = Callable[[str], None]
_POLL_S = 0.5
ANSWER_S = 10  # within which a scheduler answers


def over_cluster(
    todo: Sequence[Job], executor: str, say: Say, *, retries: int, wait_s: float
) -> Iterator[Outcome]:
    """Outcomes as they come in. A worker that dies gives its lesson to another, up to `retries` times.

    executor: "dask://HOST:PORT", the scheduler's address. Raises LessonError when nobody answers there, when
    workers run other code than this, or more than one thing at a time. Without any worker for `wait_s`
    seconds the rest is given up, each job with an outcome that says so. Cancels what runs when abandoned.
    """
    client = connect(executor)
    try:
        _wait_for_workers(client, say, wait_s)
        _check(client)
        yield from _gather(client, todo, say, retries, wait_s)
    finally:
        client.close()


def connect(executor: str) -> Client:
    """A client of the scheduler at "dask://HOST:PORT". Raises LessonError."""
    found = re.fullmatch(r"dask://([^/:\s]+|\[[0-9a-f:]+\]):(\d+)", executor)
    if found is None:
        raise LessonError(f"{executor!r} is no executor; give dask://HOST:PORT, as the scheduler prints it.")
    try:
        from distributed import Client
    except ModuleNotFoundError:
        raise LessonError(
            "A grid over machines needs dask.distributed: pip install 'labcore[grid]'."
        ) from None
    address = f"tcp://{found[1]}:{found[2]}"
    try:
        return Client(address, timeout=ANSWER_S, set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise LessonError(
            f"No scheduler answers at {address} ({type(error).__name__}); start one with `dask scheduler` "
            "and check host, port and firewall."
        ) from None


def workers(client: Client) -> dict[str, Any]:
    """The workers that the scheduler knows of, by address."""
    known: dict[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
    return known


def _wait_for_workers(client: Client, say: Say, wait_s: float) -> None:
    began, told = time.monotonic(), False
    while not workers(client):
        if time.monotonic() - began > wait_s:
            raise LessonError(
                f"The scheduler had no worker for {wait_s:g} s; start some with "
                "`dask worker HOST:PORT --nthreads 1`."
            )
        if not told:
            say(f"The scheduler has no worker yet; waiting up to {wait_s:g} s for one.")
            told = True
        time.sleep(_POLL_S)


def _check(client: Client) -> None:
    """Lessons measure, so a worker has one thread; and all run the code that this process runs."""
    threads = {address: info["nthreads"] for address, info in workers(client).items()}
    wide = [f"{address} has {number}" for address, number in threads.items() if number > 1]
    if wide:
        raise LessonError(
            f"A lesson measures and must run alone on its worker ({', '.join(wide)} threads); start workers "
            "with --nthreads 1."
        )
    ours = code_version()
    other = {address: version for address, version in client.run(code_version).items() if version != ours}
    if other:
        named = ", ".join(f"{address} has {version}" for address, version in sorted(other.items()))
        raise LessonError(
            f"Workers run another labcore than {ours}: {named}; install the same one everywhere."
        )


def _gather(
    client: Client, todo: Sequence[Job], say: Say, retries: int, wait_s: float
) -> Iterator[Outcome]:
    """Submit everything, watch the workers, and hand out what is finished."""
    client.run_on_scheduler(_allow, failures=retries)
    waiting = {client.submit(perform, job, pure=False): job for job in todo}
    known, last_seen = set(workers(client)), time.monotonic()
    try:
        while waiting:
            for future in [each for each in waiting if each.done()]:
                yield _outcome(future, waiting.pop(future))
            present = set(workers(client))
            for lost in sorted(known - present):
                say(f"Worker {lost} is gone; what it had not finished runs elsewhere.")
            for new in sorted(present - known):
                say(f"Worker {new} joined.")
            known = present
            last_seen = time.monotonic() if present else last_seen
            if time.monotonic() - last_seen > wait_s:
                say(f"No worker was left for {wait_s:g} s; {len(waiting)} lessons did not run.")
                yield from (blank(job, "not run: no worker was left") for job in waiting.values())
                return
            time.sleep(_POLL_S if waiting else 0)
    finally:
        client.cancel(list(waiting))


def _allow(failures: int, dask_scheduler: Any) -> None:
    """Runs in the scheduler: so many workers may die over one job before it is given up."""
    dask_scheduler.allowed_failures = failures


def _outcome(future: Future, job: Job) -> Outcome:
    """What came back; a job that killed its workers, or raised, is an outcome too."""
    from distributed import KilledWorker

    try:
        done: Outcome = future.result()
    except KilledWorker as killed:
        return blank(job, f"not run: {killed.allowed_failures + 1} workers died while they ran it")
    except Exception as error:
        return blank(job, f"{type(error).__name__}: {error}")
    return done
