"""One entry of the grid: a lesson on a device with a model, sent to a worker, and what comes back.

Nothing is shared with a worker but the network: the notebook goes there as text, and the executed notebook
and the lesson's results come back as text. So a worker needs labcore and no common disk.
"""

from __future__ import annotations

import hashlib
import itertools
import platform
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import labcore
from labcore.lab import runner
from labcore.lab.results import Results
from labcore.lab.runner import Lesson, Settings


@dataclass(frozen=True)
class Job:
    """A lesson's notebook as text, and the parameters that it runs with."""

    lesson: str
    settings: Settings
    notebook: str

    @property
    def name(self) -> str:
        """Unique in a grid, and fit for a file name: "02_two_steps.learner.cuda-0.story"."""
        given = (self.settings.mode, self.settings.device, self.settings.model)
        parts = [re.sub(r"[^\w.-]+", "-", part) for part in given if part]
        return ".".join([self.lesson, *parts])

    @property
    def fingerprint(self) -> str:
        """Changes with the notebook and with any parameter."""
        text = self.notebook + repr(self.settings)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Outcome:
    """How one job went. `where`: the worker's host. `executed` and `results`: files' texts, "" if none."""

    job: str
    fingerprint: str
    lesson: str
    device: str
    model: str
    where: str = ""
    cells: int = 0
    code_cells: int = 0
    seconds: float = 0.0
    error: str | None = None
    executed: str = ""
    results: str = ""

    @property
    def ok(self) -> bool:
        return self.error is None

    def summary(self) -> dict[str, Any]:
        """Everything but the two texts, which are files of their own."""
        return {key: value for key, value in asdict(self).items() if key not in ("executed", "results")}


def jobs(
    lessons: Sequence[Lesson], settings: Settings, devices: Sequence[str], models: Sequence[str]
) -> list[Job]:
    """The grid, lesson by lesson; without devices or models there is one column with the notebook's own."""
    unset: list[str | None] = [None]  # the notebook's own
    columns = itertools.product([*devices] or unset, [*models] or unset)
    given = [replace(settings, device=device, model=model) for device, model in columns]
    texts = [(lesson.name, lesson.path.read_text(encoding="utf-8")) for lesson in lessons]
    return [Job(name, parameters, text) for name, text in texts for parameters in given]


def blank(job: Job, error: str | None = None) -> Outcome:
    """The outcome of a job that has not run."""
    return Outcome(
        job=job.name,
        fingerprint=job.fingerprint,
        lesson=job.lesson,
        device=job.settings.device or "notebook's own",
        model=job.settings.model or "notebook's own",
        error=error,
    )


def perform(job: Job) -> Outcome:
    """Execute a job on this machine, in a folder that is thrown away. What fails is in the outcome."""
    with tempfile.TemporaryDirectory(prefix="labcore-grid-") as scratch:
        folder = Path(scratch)
        lesson = Lesson(folder / f"{job.lesson}.ipynb")
        lesson.path.write_text(job.notebook, encoding="utf-8")
        run = runner.run_lesson(lesson, job.settings, folder / "out")
        saved = folder / "out" / "executed" / Results(lesson.number, job.settings.mode).path.name
        return replace(
            blank(job, run.error),
            where=platform.node(),
            cells=run.cells,
            code_cells=run.code_cells,
            seconds=run.seconds,
            executed=run.executed.read_text(encoding="utf-8"),
            results=saved.read_text(encoding="utf-8") if saved.exists() else "",
        )


@lru_cache(maxsize=1)
def code_version() -> str:
    """labcore's version and a hash of its sources: equal where the same code runs."""
    root = Path(labcore.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return f"{labcore.__version__}+{digest.hexdigest()[:8]}"
