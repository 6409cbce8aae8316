"""One list of requests, four generations of servers: the real engine under each policy, in real time.

Everything that is shown of a run comes from the engine's step events and from nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tqdm import tqdm

from labcore.lab.serving_load import near_capacity
from labcore.lab.serving_play import PLACES, Watch, play
from labcore.lab.units import seconds as as_time
from labcore.lab.units import significant
from labcore.model import Model
from labcore.serving import Dynamic, Request, RequestOutput, Static, StepEvent
from labcore.serving.metrics import RequestRecord, Slo, Spread, Summary, records_from_events, summarize
from labcore.serving.policies import Policy, policy_of

BLOCK_SIZE = 16  # positions, as the engine has it
GENERATIONS = ("one-by-one", "static", "dynamic", "continuous")


@dataclass(frozen=True)
class PolicyRun:
    """One policy's run. places: requests at once; answers: tokens by id; slo: what users were promised.

    Times are seconds since the run began.
    """

    policy: str
    places: int
    requests: tuple[Request, ...]
    events: tuple[StepEvent, ...]
    answers: dict[str, tuple[int, ...]]
    slo: Slo | None = None

    @property
    def arrivals(self) -> dict[str, float]:
        """When each request was due."""
        return {request.id: request.arrival_s or 0.0 for request in self.requests}

    @cached_property
    def records(self) -> list[RequestRecord]:
        """What happened to each request."""
        return records_from_events(self.events, self.arrivals)

    @cached_property
    def summary(self) -> Summary:
        """Throughput, percentiles, goodput."""
        return summarize(self.records, self.slo)

    @property
    def row_steps(self) -> int:
        """Rows computed in all steps together, those of requests that were over included."""
        return sum(len(event.rows) for event in self.events)

    @property
    def useful_row_steps(self) -> int:
        """Of them, those of requests that still wanted something."""
        lingering = sum(row.kind == "decode" and not row.drawn for event in self.events for row in event.rows)
        return self.row_steps - lingering

    @property
    def utilisation(self) -> float:
        """Share of the computed rows that were of use to somebody, 0..1."""
        return self.useful_row_steps / self.row_steps if self.events else 0.0

    @property
    def occupancy(self) -> float:
        """Share of the engine's places, over all steps, that were of use to somebody, 0..1."""
        return self.useful_row_steps / (len(self.events) * self.places) if self.events else 0.0

    def row(self) -> dict[str, Any]:
        """The run in one line."""
        found = self.summary
        row: dict[str, Any] = {
            "policy": self.policy,
            "steps": len(self.events),
            "useful rows (%)": 100 * self.utilisation,
            "places in use (%)": 100 * self.occupancy,
            "took (s)": found.duration_s,
            "tok/s": found.output_tokens_per_s,
        }
        for name, spread in (("TTFT", found.ttft), ("ITL", found.itl), ("E2E", found.e2e)):
            row[f"{name} p50 (ms)"] = as_ms(spread, "p50")
            row[f"{name} p99 (ms)"] = as_ms(spread, "p99")
        if self.slo:
            row["kept the promise (%)"] = 100 * found.attainment
        return row

    def rows(self) -> list[dict[str, Any]]:
        """One line a request."""
        return [
            {
                "request": one.id,
                "arrived (ms)": one.start_s * 1e3,
                "prompt (tokens)": one.prompt_tokens,
                "answer (tokens)": one.output_tokens,
                "TTFT (ms)": None if one.ttft_s is None else one.ttft_s * 1e3,
                "TPOT (ms)": None if one.tpot_s is None else one.tpot_s * 1e3,
                "E2E (ms)": one.e2e_s * 1e3,
            }
            for one in self.records
        ]

    def finding(self) -> str:
        """One sentence with the numbers that matter."""
        found = self.summary
        waits = f"; half of the first tokens came within {as_time(found.ttft.p50)}, " if found.ttft else ""
        waits += f"99 of 100 within {as_time(found.ttft.p99)}" if found.ttft else ""
        return (
            f"{self.policy}: {found.completed} requests and {found.output_tokens:,} tokens in "
            f"{as_time(found.duration_s)} ({significant(found.output_tokens_per_s)} tok/s) and "
            f"{len(self.events):,} steps; {100 * self.utilisation:.0f} % of the rows that were computed were "
            f"of use, and {100 * self.occupancy:.0f} % of {self.places} places{waits}."
        )


def as_ms(spread: Spread | None, which: str) -> float | None:
    """A percentile such as "p50" in milliseconds."""
    return None if spread is None else float(getattr(spread, which)) * 1e3


def run_policies(
    model: Model,
    policies: Sequence[str | Policy] = GENERATIONS,
    requests: Sequence[Request] | None = None,
    *,
    places: int = PLACES,
    timeout_s: float | None = None,
    slo: Slo | None = None,
    seed: int = 0,
    watch: Watch | None = None,
    progress: bool = True,
    **engine: Any,
) -> dict[str, PolicyRun]:
    """The same requests under each policy, one after another; policy's name -> its run.

    requests: None draws 32 that arrive near what the engine can carry. places: requests at once, and the
    batch of static and dynamic. timeout_s: of dynamic batching; None: half of what a batch takes to arrive.
    engine: further settings of LLMEngine; the pool is as large as all places could need, unless num_blocks
    says otherwise. Raises ConfigError for an unknown policy.
    """
    if requests is None:
        requests = near_capacity(model, places=places, seed=seed, watch=watch)
    asked = tuple(requests)
    wait = half_a_batch(asked, places) if timeout_s is None else timeout_s
    settings = {"num_blocks": _enough(asked, places, engine.get("block_size", BLOCK_SIZE)), **engine}
    chosen = [_sized(policy, places, wait) for policy in policies]
    tokens = sum(request.stopping.max_new_tokens for request in asked)
    found = {}
    bar = tqdm(
        total=tokens * len(chosen), unit="token", leave=False, ncols=80, file=sys.stdout, disable=not progress
    )
    with bar:
        for policy in chosen:
            bar.set_description(policy.name)

            def told(outputs: list[RequestOutput]) -> None:
                bar.update(sum(len(output.tokens) for output in outputs))

            run = play(model, asked, policy, places=places, watch=watch, on_step=told, **settings)
            found[policy.name] = PolicyRun(policy.name, places, asked, *run, slo)
    return found


def _enough(requests: Sequence[Request], places: int, block_size: int) -> int:
    """Blocks that the longest requests would fill together, as many as there are places."""
    lengths = sorted(len(one.prompt) + one.stopping.max_new_tokens for one in requests)
    return sum(-(-length // block_size) for length in lengths[-places:])


def half_a_batch(requests: Sequence[Request], places: int) -> float:
    """Seconds in which half of a batch arrives, in the mean."""
    times = sorted(request.arrival_s or 0.0 for request in requests)
    return (times[-1] - times[0]) / max(1, len(times) - 1) * places / 2


def _sized(policy: str | Policy, places: int, timeout_s: float) -> Policy:
    """A policy by its name, with batches of as many requests as there are places."""
    sized: dict[str, Policy] = {"static": Static(places), "dynamic": Dynamic(places, timeout_s)}
    return policy_of(sized.get(policy, policy) if isinstance(policy, str) else policy)


def policy_rows(runs: Mapping[str, PolicyRun]) -> list[dict[str, Any]]:
    """One line a policy."""
    return [run.row() for run in runs.values()]


def policies_finding(runs: Mapping[str, PolicyRun]) -> str:
    """The last policy against each of the others, and whether all gave the same answers."""
    *others, last = runs.values()
    parts = [f"{last.policy}: {significant(last.summary.output_tokens_per_s)} tok/s"]
    for other in others:
        rate = last.summary.output_tokens_per_s / other.summary.output_tokens_per_s
        wait = ""
        if last.summary.ttft and other.summary.ttft:
            later = other.summary.ttft.p50 / last.summary.ttft.p50
            wait = f", its median first token {significant(later)}× as late"
        parts.append(f"{significant(rate)}× {other.policy} (in {len(other.events)} steps{wait})")
    same = all(run.answers == last.answers for run in others)
    words = "Every request got the same tokens under each." if same else "Answers differ: that is a bug."
    return f"{'; '.join(parts)}. {words}"
