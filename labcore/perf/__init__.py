"""Instruments: what a step costs, what this machine can do, what follows from both, and how it was timed.

costs.step_costs(config, batch, context)     FLOPs and bytes of one step, by operation
roofs("auto")                                this device's measured ceilings
predict.napkin(config, machine)              fit, TTFT, TPOT, throughput, price
timing.measure(fn)                           median and spread of repeated runs
machine.describe("auto")                     device, memory, threads, versions
"""

from __future__ import annotations

from labcore.perf import costs, machine, predict, timing
from labcore.perf.predict import Machine, machine_from_gpu, machine_from_roofs
from labcore.perf.roofline import Roofs, roofs
from labcore.perf.timing import Timing, measure

__all__ = [
    "Machine",
    "Roofs",
    "Timing",
    "costs",
    "machine",
    "machine_from_gpu",
    "machine_from_roofs",
    "measure",
    "predict",
    "roofs",
    "timing",
]
