"""Lesson 8's fleets and plans: costs read off a run, prefill and decode apart, GPUs, what was published."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from labcore import catalog
from labcore.lab import (
    serving_fleet,
    serving_lengths,
    serving_plans,
    serving_published,
    serving_runs,
    serving_stall,
)
from labcore.lab.figures import serving as figures
from labcore.lab.figures import serving_gains as gains
from labcore.lab.serving_fleet import FLEETS, Fitted
from labcore.lab.serving_plans import Plan
from labcore.lab.serving_rates import RateSweep
from labcore.perf.peaks import Machine
from labcore.serving.metrics import Slo
from labcore.serving.simulator import FittedCosts, Part, RooflineCost, Simulation
from tests.lab.serving_load import Ticking, busy_model, some

COSTS = FittedCosts(base_s=1e-3, prompt_token_s=1e-4, decode_row_s=1e-4, cached_token_s=0.0)
HERE = Machine("here", 8 << 30, 2e10, {"float32": 1e11})


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    runs = serving_runs.run_policies(
        busy_model(), ("continuous",), some(), places=4, watch=Ticking(), progress=False
    )
    return serving_fleet.fit(busy_model(), HERE, runs["continuous"])


@pytest.fixture(scope="module")
def fleets() -> RateSweep:
    return serving_fleet.compare_fleets(COSTS, busy_model().config, HERE, n=80, prompt=128, shares=(0.4, 0.9))


def test_the_simulator_is_held_against_the_run(fitted: Fitted) -> None:
    """On a clock by which every step takes as long, four numbers say all there is."""
    real, made = fitted.run.summary, fitted.simulated.summary
    assert made.output_tokens == real.output_tokens
    assert made.duration_s == pytest.approx(real.duration_s, rel=0.1)
    assert [row["the same requests"] for row in fitted.rows()] == ["measured", "simulated"]
    assert fitted.missed > 0
    assert "the whole took" in fitted.finding()
    assert fitted.cost_rows()[0]["µs"] == pytest.approx(1e6 * fitted.cost.base_s)


def test_fleets_get_as_much_prefill_as_decode(fleets: RateSweep) -> None:
    assert [list(runs) for runs in fleets.runs.values()] == [list(FLEETS)] * 2
    load = next(iter(fleets.runs[fleets.rates[0]].values()))
    assert isinstance(load, Simulation)
    alone, step = COSTS.seconds([Part(0, 128)]), COSTS.seconds([Part(128, 1)] * 8)
    mean = sum(one.output_tokens for one in load.records) / len(load.records)
    assert mean == pytest.approx(alone / (step / 8), rel=0.25)
    assert fleets.slo == Slo(6 * alone, 2 * step)
    assert fleets.rates == pytest.approx([0.4 * fleets.capacity, 0.9 * fleets.capacity])


def test_apart_no_token_waits_for_a_prompt(fleets: RateSweep) -> None:
    rate = fleets.rates[0]
    whole, chunks, apart = (run.summary for run in fleets.runs[rate].values())
    assert whole.itl
    assert chunks.itl
    assert apart.itl
    step = COSTS.seconds([Part(1, 1)] * 8)
    assert apart.itl.p95 <= step + 1e-9, "the gap of a hand-over may be longer"
    assert apart.itl.p99 < 2 * step < max(whole.itl.p99, chunks.itl.p99)
    rows = serving_fleet.fleet_rows(fleets, rate)
    kept, every = "promise kept, gaps in the mean (%)", "promise kept, every gap (%)"
    assert all(row[every] <= row[kept] for row in rows)
    assert rows[2][every] == rows[2][kept] == max(row[every] for row in rows)
    assert "with every single gap promised, by 1 prefills, 1 decodes" in serving_fleet.even_finding(
        fleets, rate
    )
    assert "2 do both, in chunks" in serving_fleet.fleets_finding(fleets)


def test_fleets_are_drawn_as_policies_are(fleets: RateSweep) -> None:
    lines = [trace for trace in figures.rate_figure(fleets).data if trace.name in FLEETS]
    assert len(lines) == 3 * len(FLEETS)
    labels = figures.percentiles_figure(fleets.runs[fleets.rates[0]]).data
    assert {trace.name for trace in labels} == set(FLEETS)
    assert [row["policy"] for row in fleets.rows()] == [*FLEETS, *FLEETS]


# Plans


def test_a_plan_needs_more_of_slower_gpus() -> None:
    plans = serving_plans.plan_gpus(2.0, ("a100-80gb-sxm",), rate=50, n=60)
    (row,) = [plan.row() for plan in plans]
    assert row["GPUs, 2× slower"] >= row["GPUs, at its peaks"] >= 1
    price = catalog.gpu("a100-80gb-sxm").usd_per_hour or math.nan
    assert row["$/h, at its peaks"] == pytest.approx(price * row["GPUs, at its peaks"])
    assert row["$/Mtok, 2× slower"] > row["$/Mtok, at its peaks"]
    told = serving_plans.plan_finding(plans)
    assert f"{row['GPUs, at its peaks']} × NVIDIA A100" in told
    assert "$" not in told, "JupyterLab would set what lies between two as a formula"


def test_no_number_of_gpus_may_be_enough() -> None:
    (plan,) = serving_plans.plan_gpus(1.0, ("l4",), n=20, slo=Slo(1e-4, 1e-4))
    assert plan == replace(plan, peaks=None, peaks_gpus=None, missed=None, missed_gpus=None)
    assert plan.row()["$/h, at its peaks"] is None
    assert serving_plans.plan_finding([plan]).count("none of them") == 2
    assert gains.plan_figure([plan]).data[0].text == ("no number is enough",)


def test_slowed_steps_take_so_much_longer() -> None:
    cost = RooflineCost(catalog.architecture("llama-2-7b"), catalog.gpu("a100-80gb-sxm"))
    parts = [Part(100, 1), Part(0, 50)]
    assert serving_plans.Slowed(cost, 1.7).seconds(parts) == pytest.approx(1.7 * cost.seconds(parts))


def test_the_plan_figure_counts_gpus() -> None:
    found = Plan("A", 2.0, 1.5, None, None, None, None)
    assert [bar.name for bar in gains.plan_figure([found]).data] == ["at its peaks", "1.5× slower"]


# Published


def test_golden_gains_and_checks() -> None:
    rows = {row["batch"]: row for row in serving_published.most_rows()}
    assert (rows[8]["of use, static (%)"], rows[8]["continuous at most"]) == ("36.8", "2.72×")
    assert (rows[16]["of use, static (%)"], rows[16]["continuous at most"]) == ("29.6", "3.38×")
    ratios = [float(row["× one token"]) for row in serving_published.check_rows()]
    assert ratios == sorted(ratios)
    assert ratios[2] == 1.0, "four guesses are checked for nothing"


def test_every_published_gain_stands_beside_ours(fleets: RateSweep) -> None:
    model = busy_model()
    lengths = serving_lengths.compare_lengths(
        model, n=32, places=4, prompt=4, output=8, repeats=1, watch=Ticking()
    )
    stall = serving_stall.chunk_stall(model, (16,), prompt=60, decodes=4, repeats=1, watch=Ticking())
    sweep = replace(
        fleets,
        runs={
            rate: {"static": runs[list(FLEETS)[2]], "continuous": runs[list(FLEETS)[0]]}
            for rate, runs in fleets.runs.items()
        },
    )
    rows = serving_published.beside_ours(lengths, sweep, stall, fleets)
    assert [row["published"] for row in rows] == ["36.9×", "2–4×", "up to 22×", "23×", "2.6×", "7.4×"]
    assert [row["here"] for row in rows][1:3] == ["–", "–"]
    assert all(row["here"].endswith("×") for row in (rows[0], *rows[3:]))
    assert "23×, of which scheduling alone at most 3.6×" in serving_published.scheduling_finding(lengths)
    bars = gains.lengths_figure(lengths).data
    assert list(bars[1].y) == [100, 100]
    assert list(bars[0].y)[1] == 100
