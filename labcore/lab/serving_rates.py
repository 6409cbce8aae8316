"""The same requests at rising rates: where throughput stops following and latency runs away."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tqdm import tqdm

from labcore.lab.serving_load import capacity, make_load
from labcore.lab.serving_play import PLACES, Watch
from labcore.lab.serving_runs import as_ms, run_policies
from labcore.lab.units import seconds as as_time
from labcore.lab.units import significant
from labcore.model import Model
from labcore.serving.metrics import Slo, Summary
from labcore.serving.offline import requests_of
from labcore.serving.workload import retimed

SHARES = (0.4, 0.8, 1.2, 3.0)  # of what continuous batching carries
ATTAINED = 0.9


class Summarised(Protocol):
    """A run of a policy, or the simulation of a fleet."""

    @property
    def summary(self) -> Summary:
        """Throughput, percentiles, goodput."""


@dataclass(frozen=True)
class RateSweep:
    """runs: rate in requests/s -> policy (or fleet) -> run, each summarised under `slo`. capacity: requests/s
    that continuous batching carries."""

    capacity: float
    slo: Slo
    runs: Mapping[float, Mapping[str, Summarised]]

    @property
    def rates(self) -> list[float]:
        """In rising order."""
        return sorted(self.runs)

    @property
    def policies(self) -> list[str]:
        """In the order they ran."""
        return list(self.runs[self.rates[0]])

    def carried(self, policy: str) -> float | None:
        """The highest rate before the first at which less than 90 % of the requests kept the promise."""
        best = None
        for rate in self.rates:
            if self.runs[rate][policy].summary.attainment < ATTAINED:
                break
            best = rate
        return best

    def promise(self) -> str:
        """What users were promised."""
        parts = [
            f"{what} within {as_time(limit)}"
            for what, limit in (("first token", self.slo.ttft_s), ("each further one", self.slo.tpot_s))
            if limit is not None
        ]
        return " and ".join(parts)

    def finding(self) -> str:
        """Up to which rate each policy keeps the promise."""
        told = []
        for policy in self.policies:
            best = self.carried(policy)
            told.append(f"{policy} {'at none of them' if best is None else f'up to {significant(best)}/s'}")
        rates = ", ".join(significant(rate) for rate in self.rates)
        return (
            f"At {rates} requests/s, with {self.promise()} promised, 90 % of the requests kept it: "
            f"{'; '.join(told)}. {self._beyond()}"
        )

    def _beyond(self) -> str:
        """What the last policy makes of the highest rate."""
        rate, policy = self.rates[-1], self.policies[-1]
        found = self.runs[rate][policy].summary
        return (
            f"Of {significant(rate)}/s offered, {policy} answered {significant(found.requests_per_s)}/s, "
            f"{significant(found.goodput or 0.0)}/s of them as promised."
        )

    def rows(self) -> list[dict[str, Any]]:
        """A line for each rate and policy."""
        return [
            {"offered (requests/s)": rate} | _row(name, run.summary)
            for rate in self.rates
            for name, run in self.runs[rate].items()
        ]


def _row(name: str, found: Summary) -> dict[str, Any]:
    return {
        "policy": name,
        "tok/s": found.output_tokens_per_s,
        "TTFT p50 (ms)": as_ms(found.ttft, "p50"),
        "TTFT p99 (ms)": as_ms(found.ttft, "p99"),
        "TPOT p50 (ms)": as_ms(found.tpot, "p50"),
        "E2E p50 (ms)": as_ms(found.e2e, "p50"),
        "kept the promise (%)": 100 * found.attainment,
        "answered (requests/s)": found.requests_per_s,
        "goodput (requests/s)": found.goodput,
        "in flight": found.concurrency_mean,
    }


def sweep_rates(
    model: Model,
    shares: Sequence[float] = SHARES,
    policies: Sequence[str] = ("static", "dynamic", "continuous"),
    *,
    n: int = 32,
    places: int = PLACES,
    carries: float | None = None,
    slo: Slo | None = None,
    seed: int = 0,
    watch: Watch | None = None,
    **lengths: Any,
) -> RateSweep:
    """Measure what continuous batching carries here, then replay one load at shares of that rate.

    carries: requests/s, where that is known already. Lengths and the pattern of arrivals stay the same; only
    the gaps are stretched. slo: None promises what a busy engine here can keep: a first token within the time
    that a request stays when all places are taken, further ones at half of that speed. lengths: as in
    `make_load`.
    """
    if carries is None:
        carries = capacity(model, places=places, seed=seed, watch=watch, **lengths)
    load = make_load(model, n=n, rate=carries, seed=seed, **lengths)
    mean = sum(one.output_tokens for one in load) / len(load)
    stay = places / carries  # Little's law
    promised = slo or Slo(ttft_s=stay, tpot_s=2 * stay / mean)
    runs: dict[float, Mapping[str, Summarised]] = {}
    for share in tqdm(shares, desc="rates", unit="rate", leave=False, ncols=80, file=sys.stdout):
        requests = requests_of(retimed(load, share * carries))
        runs[share * carries] = run_policies(
            model, policies, requests, places=places, timeout_s=stay / 4, slo=promised, watch=watch,
            progress=False,
        )  # fmt: skip
    return RateSweep(carries, promised, runs)
