"""From a measured engine to fleets of it: costs read off its steps, the simulator held against it, prefill
and decode apart, and how many machines a load needs.

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

from labcore import catalog
from labcore.config import ModelConfig
from labcore.errors import ConfigError
from labcore.lab.serving_rates import RateSweep, Summarised
from labcore.lab.serving_runs import PolicyRun
from labcore.lab.units import seconds as as_time
from labcore.lab.units import significant
from labcore.model import Model
from labcore.perf.peaks import Machine
from labcore.serving.metrics import Slo, Spread, Summary
from labcore.serving.simulator import (
    FittedCosts,
    Fleet,
    Numbers,
    Part,
    RooflineCost,
    Settings,
    Simulation,
    StepCost,
    capacity,
    fitted_costs,
    parts_of,
    simulate,
)
from labcore.serving.workload import LengthSpec, Workload, make_workload, retimed

# What a fleet of two is made of: name -> (fleet, prompts in chunks?)
FLEETS: dict[str, tuple[Fleet, bool]] = {
    "2 do both, prompts whole": (Fleet(replicas=2), False),
    "2 do both, in chunks": (Fleet(replicas=2), True),
    "1 prefills, 1 decodes": (Fleet(replicas=1, prefill=1), True),
}
PROMISED = Slo(ttft_s=1.0, tpot_s=0.15)
MOST = 64  # GPUs that are tried
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
        "TTFT p50 (ms)": _ms(found.ttft),
        "ITL p50 (ms)": _ms(found.itl),
        "E2E p50 (ms)": _ms(found.e2e),
    }


def _ms(spread: Spread | None) -> float | None:
    return None if spread is None else spread.p50 * 1e3


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
                "TTFT p99 (ms)": found.ttft and found.ttft.p99 * 1e3,
                "gaps p99 (ms)": found.itl and found.itl.p99 * 1e3,
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


# How many


@dataclass(frozen=True)
class Slowed:
    """Every step takes `factor` times as long as `cost` says."""

    cost: StepCost
    factor: float

    def seconds(self, parts: Sequence[Part]) -> float:
        """Seconds of one step."""
        return self.factor * self.cost.seconds(parts)


@dataclass(frozen=True)
class Plan:
    """GPUs of one kind for one load. peaks, missed: at the data sheet's peaks, and with steps `factor` times
    as long; None where no number of them keeps the promise."""

    gpu: str
    usd_per_hour: float
    factor: float
    peaks: Summary | None
    peaks_gpus: int | None
    missed: Summary | None
    missed_gpus: int | None

    def row(self) -> dict[str, Any]:
        """One line."""
        row: dict[str, Any] = {"GPU": self.gpu, "$/h each": self.usd_per_hour}
        for name, gpus, found in (
            ("at its peaks", self.peaks_gpus, self.peaks),
            (f"{significant(self.factor)}× slower", self.missed_gpus, self.missed),
        ):
            price = None if gpus is None else gpus * self.usd_per_hour
            row[f"GPUs, {name}"] = gpus
            row[f"$/h, {name}"] = price
            row[f"$/Mtok, {name}"] = (
                price / 3600 / found.output_tokens_per_s * 1e6 if price and found else None
            )
        return row


def plan_gpus(
    factor: float,
    gpus: Sequence[str] = ("l4", "a100-80gb-sxm", "h100-sxm"),
    *,
    model: str = "llama-3.1-8b",
    rate: float = 50.0,
    n: int = 200,
    slo: Slo = PROMISED,
    seed: int = 0,
) -> list[Plan]:
    """The fewest GPUs of each kind that keep the promise for 90 % of n requests that ask
    about a text: prompts of 1,000 tokens and answers of 60, exponential up to 4 means.

    factor: by how much this machine's steps missed its own roofs.
    """
    config = catalog.architecture(model)
    load = make_workload(n, rate=rate, prompt="exp:1000:1-4000", output="exp:60:1-240", seed=seed)
    plans = []
    for name in tqdm(gpus, desc="GPUs", unit="kind", leave=False, ncols=80, file=sys.stdout):
        gpu = catalog.gpu(name)
        roofs = RooflineCost(config, gpu)
        found = [_fewest(config, gpu, load, slo, cost) for cost in (roofs, Slowed(roofs, factor))]
        (peaks, fewest), (missed, more) = found
        plans.append(Plan(gpu.title, gpu.usd_per_hour or math.nan, factor, peaks, fewest, missed, more))
    return plans


def _fewest(
    config: ModelConfig, gpu: catalog.GPU, load: Workload, slo: Slo, cost: StepCost
) -> tuple[Summary | None, int | None]:
    """What that many GPUs do, and how many; (None, None) where no number of them is enough."""
    try:
        found = capacity(config, gpu, load, slo, most=MOST, cost=cost)
    except ConfigError:
        return None, None
    return found.simulation.summary, found.gpus


def plan_finding(plans: Sequence[Plan]) -> str:
    """The cheapest kind, by either estimate."""
    told = []
    for name in ("at its peaks", f"{significant(plans[0].factor)}× slower"):
        known = [(row[f"$/h, {name}"], row) for plan in plans if (row := plan.row())[f"$/h, {name}"]]
        if known:
            price, row = min(known, key=lambda one: one[0])
            per = row[f"$/Mtok, {name}"]
            # no dollar signs: JupyterLab sets what lies between two of them as a formula
            number = row[f"GPUs, {name}"]
            told.append(f"{name}, {number} × {row['GPU']}, {price:.2f} USD/h, {per:.2f} USD/Mtok")
        else:
            told.append(f"{name}, none of them")
    return f"The cheapest that keeps the promise: {'; '.join(told)}."
