"""Entries and results for the tests of the wall."""

from __future__ import annotations

from uuid import UUID, uuid4

from labcore.lab.results import Results
from labcore.lab.wall.entry import Done, Entry, Machine, Point, Speed

SECRET = "s" * 24


def entry(
    name: str = "", id: UUID | None = None, speed: float = 100.0, said: float = 3.0, device: str = "A CPU"
) -> Entry:
    """What one learner shares."""
    machine = Machine(
        device=device, kind="cpu", memory_bytes=8e9, threads=2, torch="2", labcore="0",
        matmul_flops={"float32": 2e9 * speed, "int8": 9e9 * speed}, read_bandwidth=3e10,
    )  # fmt: skip
    points = [Point(id="02.1", unit="passes", said=said, measured=16.0, locked=True)]
    speeds = [Speed(model="story", dtype="float32", batch=1, tokens_per_s=speed)]
    return Entry(
        id=id or uuid4(), name=name, shared_at="2026-01-01T00:00:00+00:00", machine=machine, points=points,
        speeds=speeds, lessons={"02": Done(right=3, of=4)},
    )  # fmt: skip


def run_a_lesson(number: str = "01", saved_name: str = "A CPU") -> None:
    """Save what a lesson would."""
    machine = {"name": saved_name, "device": "cpu", "total_memory": 8e9, "threads": 2, "torch_version": "2"}
    results = Results(number, machine=machine | {"labcore_version": "0", "system": "Linux my-own-host"})
    results.record("predictions", f"{number}.1", question="Secret?", value=50.0, unit="tok/s", locked=True)
    results.record("predictions", f"{number}.1", measured=100.0, off_by=2.0)
    results.record("predictions", f"{number}.2", value="4×", number=4.0, measured="none of them")
    results.record("exercises", f"{number}.1", title="x", passed=True)
    rate = {"model": "story", "dtype": "float32", "batch": 1, "value": 100.0}
    results.record("measurements", "decode tok/s, batch 1", **rate)
    results.record("measurements", "guess", expected=3.0, measured=2.0)
    results.save()
