"""Any set of runs beside each other: what several of them measured, and why the rest stands alone.

Two numbers are compared where the same was measured in the same unit. Of different models only the shares are
compared that each reached of what its own machine allows: their tokens/s are different work.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from labcore.bench.compare_runs import DTYPES, SETTINGS, Run
from labcore.bench.suite_rows import Row
from labcore.errors import LabError
from labcore.shares import share_text

SHARE = "% of what the machine allows"
FULL = "full precision"
_BATCHES = re.compile(r", batches of \d+$")  # a setting, and said as one
Key = tuple[str, str, str, str]


@dataclass(frozen=True)
class Point:
    """What one run measured. row: as its record has it. value: what is compared, maybe a share of it."""

    run: Run
    row: Row
    value: float

    @property
    def model(self) -> str | None:
        """What it is about."""
        return self.run.model_of(self.row)


@dataclass(frozen=True)
class Measurement:
    """One thing that was measured, in one unit, by one run or more in their order."""

    section: str
    what: str
    engine: str
    unit: str
    higher_is_better: bool | None
    points: tuple[Point, ...]

    @property
    def name(self) -> str:
        """What was measured, of which engine."""
        return f"{self.what} · {self.engine}" if self.engine else self.what

    def ratio(self, point: Point) -> float | None:
        """A run's value over the first run's; None where that is 0."""
        first = self.points[0].value
        return point.value / first if first else None


@dataclass(frozen=True)
class Compared:
    """notes: sentences on what is not compared, and on what else differs."""

    runs: tuple[Run, ...]
    measurements: tuple[Measurement, ...]
    notes: tuple[str, ...]


def compare(runs: Sequence[Run]) -> Compared:
    """What runs have in common; of a single run, everything. Raises LabError where that is nothing."""
    least = min(2, len(runs))
    same = [one for one in _joined(runs, _as_measured) if len(_runs_in([one])) >= least]
    shares = [
        one for one in _joined(runs, _as_share) if len(_runs_in([one])) > 1 and len(_models_in([one])) > 1
    ]
    if not (same or shares):
        raise LabError(_nothing_in_common(runs))
    sections = list(dict.fromkeys(one.section for one in (*same, *shares)))
    found = sorted([*same, *shares], key=lambda one: sections.index(one.section))
    notes = [
        *_different_models(shares),
        *_exceeded(found),
        *_different_settings(found),
        *_left_out(runs, found),
    ]
    return Compared(tuple(runs), tuple(found), tuple(notes))


# Joining


def _joined(runs: Iterable[Run], shown: Callable[[Run, Row], Iterator[Measurement]]) -> list[Measurement]:
    """Every measurement of any run with all that made it; each model of a run counts once."""
    points: dict[Key, dict[tuple[str, str | None], Point]] = {}
    kinds: dict[Key, Measurement] = {}
    for run in runs:
        for one in (each for row in run.rows for each in shown(run, row)):
            key = (one.section, one.what, one.engine, one.unit)
            (point,) = one.points
            kinds.setdefault(key, one)
            points.setdefault(key, {}).setdefault((run.name, point.model), point)
    return [replace(kinds[key], points=tuple(found.values())) for key, found in points.items()]


def _as_measured(run: Run, row: Row) -> Iterator[Measurement]:
    """A row as it is."""
    point = Point(run, row, row.value)
    yield Measurement(row.section, row.what, _engine(row), row.unit, row.higher_is_better, (point,))


def _as_share(run: Run, row: Row) -> Iterator[Measurement]:
    """What a row reached of its ceiling, whatever the model."""
    if row.ceiling_share:
        model, point = run.model_of(row), Point(run, row, 100 * row.ceiling_share)
        work = row.what.removeprefix(f"{model}, ")
        yield Measurement(row.section, work, _engine(row), SHARE, True, (point,))


def _engine(row: Row) -> str:
    """The engine's name without what is a setting of its run: number format, size of the batches."""
    return DTYPES.sub(FULL, _BATCHES.sub("", row.engine))


# Saying what is not compared, and what else differs


def _runs_in(found: Sequence[Measurement]) -> dict[str, Run]:
    return {point.run.name: point.run for one in found for point in one.points}


def _models_in(found: Sequence[Measurement]) -> list[str]:
    return list(dict.fromkeys(str(point.model) for one in found for point in one.points))


def _different_models(shares: Sequence[Measurement]) -> list[str]:
    if not shares:
        return []
    models = " and ".join(_models_in(shares))
    return [
        f"{models} are different models, so not their speeds are compared but the share that each reached of "
        "what its machine allows."
    ]


def _exceeded(measured: Sequence[Measurement]) -> list[str]:
    """A sentence for each run with work that exceeds its ceiling."""
    doubted: dict[str, list[str]] = {}
    for point in (point for one in measured for point in one.points if not point.row.trusted):
        share = f"{point.row.what}, {point.row.engine}: {share_text(point.row.ceiling_share)}"
        if share not in doubted.setdefault(point.run.name, []):
            doubted[point.run.name].append(share)
    return [
        f"{run} exceeds its ceiling, so that these shares of it cannot be trusted: {_some(said)}."
        for run, said in doubted.items()
    ]


def _different_settings(found: Sequence[Measurement]) -> list[str]:
    """A sentence for each setting, of the runs that measured the same kind of thing."""
    said = []
    for section in dict.fromkeys(one.section for one in found):
        runs = _runs_in([one for one in found if one.section == section]).values()
        for name in SETTINGS:
            values = dict.fromkeys(run.settings[name] for run in runs if name in run.settings)
            if len(values) > 1:
                each = (f"{value} in {_some(_with(runs, name, value))}" for value in values)
                said.append(f"{section}: not the same {name.replace('_', ' ')}: {', '.join(each)}.")
    return said


def _with(runs: Iterable[Run], setting: str, value: str) -> list[str]:
    return [run.name for run in runs if run.settings.get(setting) == value]


def _left_out(runs: Sequence[Run], found: Sequence[Measurement]) -> list[str]:
    """A sentence for each run of which something stands alone."""
    used = {(point.run.name, point.row) for one in found for point in one.points}
    said = []
    for run in runs:
        alone = [row for row in run.rows if (run.name, row) not in used]
        if len(alone) == len(run.rows):
            said.append(f"{run.name} has no measurement in common with the others: it holds {_held(run)}.")
        elif alone:
            what = _some(list(dict.fromkeys(f"{row.section}: {row.what}" for row in alone)), 2)
            said.append(f"{run.name} alone has {len(alone)} of its {len(run.rows)} measurements ({what}).")
    return said


def _nothing_in_common(runs: Sequence[Run]) -> str:
    held = "; ".join(f"{run.name} holds {_held(run)}" for run in runs)
    kinds = [{row.section for row in run.rows} for run in runs]
    if not set.intersection(*kinds):
        return f"These runs have no measurement in common: {held}."
    if not set.intersection(*(set(run.models) for run in runs)):
        return (
            f"These runs are of different models, at work that differs too, so nothing is comparable: {held}."
        )
    return f"These runs measured the same kind of thing at different work, so nothing is comparable: {held}."


def _held(run: Run) -> str:
    """Its kinds of measurement, and of what, in a few words."""
    sections = ", ".join(dict.fromkeys(row.section for row in run.rows))
    return f"{sections} ({_some(list(dict.fromkeys(row.what for row in run.rows)), 2)})"


def _some(names: Sequence[str], most: int = 3) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return "; ".join(names[:most]) + more
