"""How many machines a load needs: the simulator at a GPU's peaks, and as far below as was measured here."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from labcore import catalog
from labcore.config import ModelConfig
from labcore.errors import ConfigError
from labcore.lab.units import significant
from labcore.serving.metrics import Slo, Summary
from labcore.serving.simulator import Part, RooflineCost, StepCost, capacity
from labcore.serving.workload import Workload, make_workload

PROMISED = Slo(ttft_s=1.0, tpot_s=0.15)
MOST = 64  # GPUs that are tried


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
