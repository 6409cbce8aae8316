"""The same requests at rising rates: where throughput stops following and latency runs away."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from labcore.lab.serving_load import capacity, make_load
from labcore.lab.serving_play import PLACES, Watch
from labcore.lab.serving_runs import PolicyRun, run_policies
from labcore.lab.units import seconds as as_time
from labcore.lab.units import significant
from labcore.model import Model
from labcore.serving.metrics import Slo
from labcore.serving.offline import requests_of
from labcore.serving.workload import retimed

SHARES = (0.4, 0.8, 1.2, 2.0)  # of what continuous batching carries
ATTAINED = 0.9


@dataclass(frozen=True)
class RateSweep:
    """runs: rate in requests/s -> policy -> run. capacity: requests/s that continuous batching carries."""

    capacity: float
    slo: Slo
    runs: dict[float, dict[str, PolicyRun]]

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
            f"{'; '.join(told)}."
        )

    def rows(self) -> list[dict[str, Any]]:
        """A line for each rate and policy."""
        return [
            {"offered (requests/s)": rate} | _row(run)
            for rate in self.rates
            for run in self.runs[rate].values()
        ]


def _row(run: PolicyRun) -> dict[str, Any]:
    found, full = run.summary, run.row()
    kept = ("policy", "tok/s", "TTFT p50 (ms)", "TTFT p99 (ms)", "E2E p50 (ms)", "kept the promise (%)")
    row = {name: full[name] for name in kept if name in full}
    return row | {
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
    slo: Slo | None = None,
    seed: int = 0,
    watch: Watch | None = None,
    **lengths: Any,
) -> RateSweep:
    """Measure what continuous batching carries here, then replay one load at shares of that rate.

    Lengths and the pattern of arrivals stay the same; only the gaps are stretched. slo: None promises what
    a busy engine here can keep: a first token within the time that a request stays when all places are taken,
    further ones at half of that speed. lengths: as in `make_load`.
    """
    carries = capacity(model, places=places, seed=seed, watch=watch, **lengths)
    load = make_load(model, n=n, rate=carries, seed=seed, **lengths)
    mean = sum(one.output_tokens for one in load) / len(load)
    stay = places / carries  # Little's law
    promised = slo or Slo(ttft_s=stay, tpot_s=2 * stay / mean)
    runs: dict[float, dict[str, PolicyRun]] = {}
    for share in tqdm(shares, desc="rates", unit="rate", leave=False, ncols=80, file=sys.stdout):
        requests = requests_of(retimed(load, share * carries))
        runs[share * carries] = run_policies(
            model, policies, requests, places=places, timeout_s=stay / 4, slo=promised, watch=watch,
            progress=False,
        )  # fmt: skip
    return RateSweep(carries, promised, runs)
