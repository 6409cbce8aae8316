"""Where continuous batching wins and where not: at lengths that differ, and at equal ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from labcore.lab.serving_load import make_load
from labcore.lab.serving_play import PLACES, Watch
from labcore.lab.serving_runs import PolicyRun, run_policies
from labcore.lab.units import significant
from labcore.model import Model
from labcore.serving.offline import requests_of

KINDS = {"exponential": False, "constant": True}


def harmonic(n: int) -> float:
    """1 + 1/2 + … + 1/n: the longest of n exponential lengths, in means."""
    return sum(1 / k for k in range(1, n + 1))


@dataclass(frozen=True)
class LengthsRun:
    """runs: kind of lengths -> policy -> run; all requests were there from the start."""

    places: int
    runs: dict[str, dict[str, PolicyRun]]

    def gain(self, kind: str) -> tuple[float, float]:
        """Static over continuous: steps, seconds."""
        static, continuous = (self.runs[kind][name] for name in ("static", "continuous"))
        return (
            len(static.events) / len(continuous.events),
            static.summary.duration_s / continuous.summary.duration_s,
        )

    def theory(self, kind: str) -> float:
        """Of a static batch's rows the share of use: 1/H_B for exponential lengths, all for equal ones."""
        return 1.0 if KINDS[kind] else 1 / harmonic(self.places)

    def rows(self) -> list[dict[str, Any]]:
        """A line for each kind and policy."""
        return [
            {
                "lengths": kind,
                "policy": policy,
                "tokens": run.summary.output_tokens,
                "steps": len(run.events),
                "took (s)": run.summary.duration_s,
                "useful rows (%)": 100 * run.utilisation,
                "in theory (%)": 100 * (self.theory(kind) if policy == "static" else 1.0),
            }
            for kind, runs in self.runs.items()
            for policy, run in runs.items()
        ]

    def finding(self) -> str:
        """Gains at both kinds, beside what theory allows."""
        (steps, seconds), (same_steps, same_seconds) = (self.gain(kind) for kind in KINDS)
        static = self.runs["exponential"]["static"]
        return (
            f"Exponential lengths: of static batching's rows {100 * static.utilisation:.1f} % were of use "
            f"(1/H_{self.places} = {100 * self.theory('exponential'):.1f} %), and it took "
            f"{significant(steps)}× the steps and {significant(seconds)}× the seconds of continuous "
            f"batching. Constant lengths: {significant(same_steps)}× the steps, "
            f"{significant(same_seconds)}× the seconds."
        )


def compare_lengths(
    model: Model,
    *,
    n: int | None = None,
    places: int = PLACES,
    prompt: int = 8,
    output: int = 24,
    repeats: int = 2,
    seed: int = 0,
    watch: Watch | None = None,
) -> LengthsRun:
    """Static against continuous at exponential and at constant lengths of one mean, all requests at once.

    n: requests (default: six batches); prompt, output: tokens, in the mean for answers. Policies take turns;
    each one's fastest run counts, because disturbance only ever makes a run slower.
    """
    runs = {}
    for kind, constant in KINDS.items():
        load = make_load(
            model, n=n or 6 * places, prompt=prompt, output=output, constant=constant, seed=seed
        )
        # Prompts are equally long in both, so that answers alone differ.
        same = tuple(replace(one, prompt=(one.prompt * prompt)[:prompt]) for one in requests_of(load))
        tried = [
            run_policies(model, ("static", "continuous"), same, places=places, watch=watch)
            for _ in range(repeats)
        ]
        runs[kind] = {name: _fastest([runs[name] for runs in tried]) for name in tried[0]}
    return LengthsRun(places, runs)


def _fastest(runs: list[PolicyRun]) -> PolicyRun:
    return min(runs, key=lambda run: run.summary.duration_s)
