"""From a measured engine to fleets of it: costs read off its steps, the simulator held against it, prefill
and decode apart.

The simulator runs the engine's own scheduler on a clock that moves by what steps would cost.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from labcore.config import ModelConfig
from labcore.lab.serving_rates import RateSweep, Summarised
from labcore.lab.serving_runs import PolicyRun, as_ms
from labcore.lab.units import seconds as as_time
from labcore.lab.units import significant
from labcore.model import Model
from labcore.perf.peaks import Machine
from labcore.serving.metrics import Slo, Summary
from labcore.serving.simulator import (
    FittedCosts,
    Fleet,
    Numbers,
    Part,
    RooflineCost,
    Settings,
    Simulation,
    fitted_costs,
    parts_of,
    simulate,
)
from labcore.serving.workload import LengthSpec, make_workload, retimed

# What a fleet of two is made of: name -> (fleet, prompts in chunks?)
FLEETS: dict[str, tuple[Fleet, bool]] = {
    "2 do both, prompts whole": (Fleet(replicas=2), False),
    "2 do both, in chunks": (Fleet(replicas=2), True),
    "1 prefills, 1 decodes": (Fleet(replicas=1, prefill=1), True),
}
SHARES = (0.3, 0.5, 0.7, 0.9)  # of what two machines could compute without ever waiting


@dataclass(frozen=True)
class Fitted:
    """Costs of this machine's steps, and the run that they were read from, played again by the simulator.

    missed: how many times as long as its roofs allow a step took, in the median.
    """

    run: PolicyRun
    cost: FittedCosts
    simulated: Simulation
    missed: float

    def cost_rows(self) -> list[dict[str, Any]]:
        """The four numbers, in microseconds."""
        parts = (
            ("every step", self.cost.base_s),
            ("each token of a prompt", self.cost.prompt_token_s),
            ("each request that decodes", self.cost.decode_row_s),
            ("each token found in the cache", self.cost.cached_token_s),
        )
        return [{"a step costs, for": what, "µs": seconds * 1e6} for what, seconds in parts]

    def rows(self) -> list[dict[str, Any]]:
        """The run, measured and simulated."""
        pairs = (("measured", self.run.summary), ("simulated", self.simulated.summary))
        return [{"the same requests": name} | _told(found) for name, found in pairs]

    def finding(self) -> str:
        """How far the simulator is off."""
        real, made = self.run.summary, self.simulated.summary
        off = _off(made.duration_s, real.duration_s)
        stay = _off(made.e2e.p50, real.e2e.p50) if made.e2e and real.e2e else "–"
        return (
            f"The same {real.requests} requests through the same scheduler, once with this model and once "
            f"with four numbers fitted to its {len(self.run.events)} steps. Simulated, the whole took {off} "
            f"time and the median answer {stay}. A step here takes {significant(self.missed)}× what the two "
            "roofs of this machine allow."
        )


def _off(simulated: float, measured: float) -> str:
    share = 100 * (simulated / measured - 1)
    return f"{abs(share):.0f} % {'more' if share >= 0 else 'less'}"


def _told(found: Summary) -> dict[str, Any]:
    return {
        "took (s)": found.duration_s,
        "tok/s": found.output_tokens_per_s,
        "TTFT p50 (ms)": as_ms(found.ttft, "p50"),
        "ITL p50 (ms)": as_ms(found.itl, "p50"),
        "E2E p50 (ms)": as_ms(found.e2e, "p50"),
    }


def fit(model: Model, machine: Machine, run: PolicyRun) -> Fitted:
    """Read the costs off a run, and play its requests again by them. Raises ConfigError for no steps."""
    cost = fitted_costs(run.events)
    settings = Settings(
        run.policy,
        num_blocks=run.events[0].blocks_total,
        max_num_seqs=run.places,
        prefix_caching=False,
        numbers=Numbers(dtype=_dtype(model)),
    )
    played = simulate(model.config, machine, run.requests, settings=settings, cost=cost)
    roofs = RooflineCost(model.config, machine, settings.numbers)
    missed = statistics.median(event.seconds / roofs.seconds(parts_of(event)) for event in run.events)
    return Fitted(run, cost, played, missed)


def _dtype(model: Model) -> str:
    return str(model.dtype).removeprefix("torch.")


# Prefill and decode apart


def compare_fleets(
    cost: FittedCosts,
    config: ModelConfig,
    machine: Machine,
    *,
    shares: Sequence[float] = SHARES,
    n: int = 200,
    prompt: int = 256,
    places: int = 8,
    chunk: int = 64,
    seed: int = 0,
) -> RateSweep:
    """Two machines of these costs, three ways of sharing the work, at rising rates: simulated.

    prompt: tokens in the mean, exponential up to 4 means, as answers are, which are so long that a request
    asks for as much prefill as decode: both machines then have as much to do, each with its own. chunk:
    tokens a step where prompts go in chunks. Promised are a first token within 6 times what a mean prompt
    takes alone, and further ones within 2 steps of a full batch.
    """
    alone = cost.seconds([Part(0, prompt)])
    step = cost.seconds([Part(prompt, 1)] * places)
    output = max(2, round(alone / (step / places)))
    lengths = [LengthSpec.exponential(mean, 1, 4 * mean) for mean in (prompt, output)]
    load = make_workload(
        n, rate=1.0, prompt=lengths[0], output=lengths[1], vocab_size=config.vocab_size, seed=seed
    )
    carried = 2 / (alone + output * step / places)
    slo = Slo(6 * alone, 2 * step)
    runs: dict[float, Mapping[str, Summarised]] = {}
    for share in tqdm(shares, desc="fleets", unit="rate", leave=False, ncols=80, file=sys.stdout):
        arriving = retimed(load, share * carried)
        runs[share * carried] = {
            name: simulate(
                config, machine, arriving, fleet=fleet, slo=slo, cost=cost,
                settings=_settings(4 * (prompt + output), places, chunk if chunked else 4 * prompt, chunked),
            )
            for name, (fleet, chunked) in FLEETS.items()
        }  # fmt: skip
    return RateSweep(carried, slo, runs)


def _settings(longest: int, places: int, budget: int, chunked: bool) -> Settings:
    return Settings(
        num_blocks=places * -(-longest // 16), max_num_seqs=places, token_budget=budget, chunked=chunked,
        max_model_len=longest, prefix_caching=False,
    )  # fmt: skip


def fleets_finding(sweep: RateSweep) -> str:
    """Goodput of each way at the highest rate, and the slowest tokens."""
    rate = sweep.rates[-1]
    told = []
    for name, run in sweep.runs[rate].items():
        found = run.summary
        gap = f", 1 of 100 gaps over {as_time(found.itl.p99)}" if found.itl else ""
        told.append(f"{name}: {100 * found.attainment:.0f} % kept the promise{gap}")
    return f"Two machines like this one at {significant(rate)} requests/s: {'; '.join(told)}."


def fleet_rows(sweep: RateSweep, rate: float) -> list[dict[str, Any]]:
    """Each way at one rate, under two promises: further tokens in time in the mean, and every single one."""
    limit = sweep.slo.tpot_s or math.inf
    rows = []
    for name, run in sweep.runs[rate].items():
        assert isinstance(run, Simulation)
        found = run.summary
        even = sum(sweep.slo.met(one) and max(one.itl_s, default=0.0) <= limit for one in run.records)
        rows.append(
            {
                "two machines": name,
                "TTFT p99 (ms)": as_ms(found.ttft, "p99"),
                "gaps p99 (ms)": as_ms(found.itl, "p99"),
                "promise kept, gaps in the mean (%)": 100 * found.attainment,
                "promise kept, every gap (%)": 100 * even / len(run.records),
            }
        )
    return rows


def even_finding(sweep: RateSweep, rate: float) -> str:
    """Who is best under either promise."""
    rows = fleet_rows(sweep, rate)
    told = []
    for what in ("gaps in the mean", "every gap"):
        best = max(rows, key=lambda row: row[f"promise kept, {what} (%)"])
        told.append(f"{best['two machines']} ({best[f'promise kept, {what} (%)']:.0f} %)")
    return (
        f"At {significant(rate)} requests/s, with further tokens promised within "
        f"{as_time(sweep.slo.tpot_s or math.inf)} in the mean, the promise is kept most often by {told[0]}; "
        f"with every single gap promised, by {told[1]}."
    )
