"""This lesson's server: the engine behind OpenAI's API, for real, on a free port of this machine's loopback.

It runs on threads of this process, which end with it: no process or port outlives the kernel, however that
ends. `lab.finish` stops it before.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from labcore.lab import session as sessions
from labcore.lab.display import finding, note
from labcore.lab.live import readable
from labcore.lab.serving_load import make_load
from labcore.lab.serving_play import PLACES
from labcore.lab.units import seconds as as_time
from labcore.lab.units import significant
from labcore.model import Model
from labcore.serving import LLMEngine
from labcore.serving.load import Client, run_load
from labcore.serving.metrics import Slo, Summary, summarize
from labcore.serving.server import Limits, create_app, serving

GRACE_S = 1.0  # for answers that run when the server is stopped
WAIT_S = 60.0


class LiveServer:
    """A server of one model under continuous batching. places: requests at once."""

    def __init__(self, model: Model, *, places: int = PLACES) -> None:
        self.model, self.places, self.url = model, places, ""
        self._open = ExitStack()

    @property
    def running(self) -> bool:
        """Whether it listens."""
        return bool(self.url)

    def start(self) -> LiveServer:
        """Listen on a free port; nothing where it runs already. Raises ServerError."""
        if not self.running:
            engine = LLMEngine(self.model, max_num_seqs=self.places)
            app = create_app(engine, limits=Limits(grace_s=GRACE_S))
            self.url = self._open.enter_context(serving(app))
        return self

    def stop(self) -> None:
        """Close the port and end the threads; nothing where it does not run."""
        self.url = ""
        self._open.close()

    @contextmanager
    def at_work(self) -> Iterator[str]:
        """Its address. One that was stopped runs for as long as the block does."""
        was_running = self.running
        try:
            yield self.start().url
        finally:
            if not was_running:
                self.stop()

    def _ipython_display_(self) -> None:
        """Told when it started; as the last value of a cell it is not repeated."""


def serve(model: Model, *, places: int = PLACES) -> LiveServer:
    """Start this lesson's server, and say where it is. An earlier one of this session is stopped first."""
    server = LiveServer(model, places=places)
    sessions.current().at_finish("server", server.stop)
    server.start()
    note(
        f"{model.name} answers at {server.url}/v1 until lab.finish(), the kernel's end, or server.stop().",
        "good",
        "The server is up.",
    )
    return server


def ask(server: LiveServer, prompt: str | Sequence[int], max_tokens: int = 24) -> dict[str, Any]:
    """Send one request as any client of OpenAI's would, and show what went over the wire and what came back.

    Returns the answer's JSON. A model without a tokenizer is sent token ids.
    """
    sent = readable(server.model, prompt if isinstance(prompt, str) else list(prompt))
    body = {"model": server.model.name, "prompt": sent, "max_tokens": max_tokens, "temperature": 0}
    with server.at_work() as url, httpx.Client(base_url=url, trust_env=False, timeout=WAIT_S) as client:
        began = time.perf_counter()
        answer: dict[str, Any] = client.post("/v1/completions", json=body).raise_for_status().json()
        took = time.perf_counter() - began
    usage = answer["usage"]
    finding(
        f"POST {url}/v1/completions\n{json.dumps(body)[:400]}\n"
        f"→ {answer['choices'][0]['text']!r}\n"
        f"{usage['prompt_tokens']} tokens in, {usage['completion_tokens']} out, {as_time(took)} over HTTP."
    )
    return answer


@dataclass(frozen=True)
class PatientUsers:
    """A closed loop over HTTP. engine: requests/s that the engine carries without a server around it."""

    users: int
    summary: Summary
    engine: float

    @property
    def share(self) -> float:
        """Of what the engine alone carries, what is left over HTTP."""
        return self.summary.requests_per_s / self.engine

    @property
    def slo(self) -> Slo:
        """What a busy server here can promise: a first token within the time that one of these users waited
        for a whole answer (Little's law), further ones at half of that speed."""
        stay = self.users / self.summary.requests_per_s
        return Slo(stay, 2 * stay * self.summary.completed / self.summary.output_tokens)

    def finding(self) -> str:
        """What is left, and where the rest goes."""
        found = self.summary
        return (
            f"{self.users} users, each of whom waits for an answer before asking again, got "
            f"{significant(found.requests_per_s)} answers/s over HTTP. The engine alone carries "
            f"{significant(self.engine)}/s: {100 * self.share:.0f} % are left. Each of the "
            f"{found.output_tokens:,} tokens travelled as an event of its own, written by the server and "
            "read by the client, and both take turns with the engine on this machine. Promised from here on: "
            f"a first token within {as_time(self.slo.ttft_s or 0.0)}, further ones within "
            f"{as_time(self.slo.tpot_s or 0.0)}."
        )


def patient_users(
    server: LiveServer, engine: float, *, users: int = PLACES, n: int = 48, seed: int = 0, **lengths: Any
) -> PatientUsers:
    """n requests to a server from users who wait for their answers. engine: requests/s without a server.

    lengths: as in `make_load`.
    """
    load = make_load(server.model, n=n, seed=seed, **lengths)
    with server.at_work() as url:
        run = run_load(Client(url), load, users=users, warmup=load[:2])
    return PatientUsers(users, summarize(run.records), engine)
