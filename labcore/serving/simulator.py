"""The serving engine over a model of its costs: a thousand requests on eight GPUs, in seconds, on a laptop.

Scheduler, policies, blocks, prefix tree and bookkeeping are the engine's own; only a step's tokens are not
computed, and a virtual clock moves by what they would cost.

    simulate(config, gpu, make_workload(1000, rate=20), fleet=Fleet(replicas=8))        -> Simulation
    simulate(config, gpu, workload, fleet=Fleet(replicas=6, prefill=2))                 disaggregated
    capacity(config, gpu, workload, Slo(ttft_s=0.5, tpot_s=0.05)).gpus                  GPUs to buy
    SimulatedEngine(fitted_costs(engine.events), ...)                                   held against an engine

What it assumes stands where it is assumed: `RooflineCost` (peak rates, tensor parallelism), `Cluster` (when
results count, the link), `SimulatedEngine` (lengths of answers).
"""

from __future__ import annotations

from labcore.serving.simulated.costs import (
    Numbers,
    Part,
    RooflineCost,
    StepCost,
    cache_blocks,
    mixed_costs,
)
from labcore.serving.simulated.engine import CostRunner, SimulatedEngine, VirtualClock
from labcore.serving.simulated.fitted import FittedCosts, fitted_costs, parts_of
from labcore.serving.simulated.fleet import Cluster, Fleet, Handover
from labcore.serving.simulated.planning import (
    Capacity,
    Settings,
    Simulation,
    capacity,
    simulate,
)

__all__ = [
    "Capacity",
    "Cluster",
    "CostRunner",
    "FittedCosts",
    "Fleet",
    "Handover",
    "Numbers",
    "Part",
    "RooflineCost",
    "Settings",
    "SimulatedEngine",
    "Simulation",
    "StepCost",
    "VirtualClock",
    "cache_blocks",
    "capacity",
    "fitted_costs",
    "mixed_costs",
    "parts_of",
    "simulate",
]
