"""Load tests of any server that speaks OpenAI's completions API. Needs httpx (extra `serve`).

run_load(Client(url), make_workload(64, rate=4))             an open loop: requests come at their own times
run_load(Client(url), make_workload(64), users=8)            a closed loop: 8 users who wait for their answers
sweep(run, [1, 2, 4, 8], slo)                                rising rates, up to the knee
"""

from __future__ import annotations

from labcore.serving.load.client import Client, Dialect, LoadTestError
from labcore.serving.load.runner import LoadRun, run_load
from labcore.serving.load.sweep import Point, Sweep, sweep

__all__ = ["Client", "Dialect", "LoadRun", "LoadTestError", "Point", "Sweep", "run_load", "sweep"]
