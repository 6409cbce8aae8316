"""What limits a step: arithmetic, memory, communication, or the asking itself.

Four times are set side by side, each the least that the step could take if nothing else stood in its way (for
communication and the gaps: what it was seen to take). The largest names the regime. The roofline model
(Williams et al. 2009) has the first two; at batch 1 and over several devices the others matter as much.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from labcore.perf.dtypes import rate_for
from labcore.perf.machine import last_level_cache_bytes
from labcore.perf.roofline import Roofs

NAMES = ("overhead", "communication", "bandwidth", "compute")


@dataclass(frozen=True)
class Regime:
    """What limits a step. terms: seconds by regime; sentence: the evidence, in words and numbers."""

    name: str
    sentence: str
    terms: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Work:
    """What a step of `wall_s` seconds did. gaps_s and communication_s: measured seconds of it."""

    wall_s: float
    flops: float
    bytes: float
    operations: int
    communication_s: float
    gaps_s: float


def name_regime(work: Work, roofs: Roofs, dtype: object = "float32", note: str = "") -> Regime:
    """Name what limits a step on a device with these roofs. dtype: of its matrix products.

    Overhead is the gaps and a launch for each operation, at most the step itself: on a CPU a launch holds
    the gap before it. note: a clause to end the sentence with.
    Raises DeviceError when the roofs have no rate for the dtype.
    """
    launches = work.operations * roofs.launch_overhead_s
    terms = {
        "compute": work.flops / rate_for(dtype, roofs.matmul_flops) if work.flops else 0.0,
        "bandwidth": work.bytes / roofs.read_bandwidth,
        "communication": work.communication_s,
        "overhead": min(work.wall_s, work.gaps_s + launches),
    }
    name = max(NAMES, key=lambda term: terms[term])
    evidence = _evidence(name, work, roofs, dtype)
    others = ", ".join(f"{term} {_time(terms[term])}" for term in terms if term != name)
    sentence = f"{name}: {evidence}, of a step of {_time(work.wall_s)}, against {others}"
    return Regime(name=name, sentence=f"{sentence}{note}.", terms=terms)


def _evidence(name: str, work: Work, roofs: Roofs, dtype: object) -> str:
    if name == "compute":
        rate = rate_for(dtype, roofs.matmul_flops)
        seconds = _time(work.flops / rate)
        return f"{_scaled(work.flops)}FLOP at this device's {_scaled(rate)}FLOP/s take {seconds}"
    if name == "bandwidth":
        seconds = _time(work.bytes / roofs.read_bandwidth)
        at = f"at this device's {_scaled(roofs.read_bandwidth)}B/s"
        return f"{_scaled(work.bytes)}B {at} take {seconds}{_cached(work, roofs)}"
    if name == "communication":
        return f"collectives that nothing hid took {_time(work.communication_s)}"
    launches = work.operations * roofs.launch_overhead_s
    asked = f"{work.operations} operations of {_time(roofs.launch_overhead_s)} to launch"
    capped = ", capped at the step" if work.gaps_s + launches > work.wall_s else ""
    return f"{_time(work.gaps_s)} in which nothing ran and {asked} ({_time(launches)}{capped})"


def _cached(work: Work, roofs: Roofs) -> str:
    """All it moves fits the processor's cache, so that a step after another need not go to memory."""
    cache = last_level_cache_bytes() if roofs.device == "cpu" else None
    if cache is None or work.bytes > cache:
        return ""
    return f" from memory, but they fit the last-level cache of {_scaled(cache)}B, which is faster"


def _scaled(number: float) -> str:
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g} {prefix}"
    return f"{number:.3g} "


def _time(seconds: float) -> str:
    for factor, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"
