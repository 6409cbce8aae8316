"""Run lessons from top to bottom without a browser, and say how it went.

Each lesson is executed by papermill in a kernel of its own, with its `parameters` cell overridden. The
executed notebook is written whether the lesson succeeds or not: a failing one is the best report of its
own failure. One lesson's failure never stops the next. Results go to `<out>/executed`, apart from what the
learner answered and measured.
"""

from __future__ import annotations

import difflib
import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from labcore.errors import LessonError
from labcore.lab.jupyter import KERNEL_ARGUMENTS, kernel_environment
from labcore.lab.results import Results
from labcore.working import lines

MODES = ("learner", "solution")
SCALES = ("auto", "quick", "full")

OnCell = Callable[[int, int], None]


@dataclass(frozen=True)
class Lesson:
    """One notebook of the course: `notebooks/<number>_<slug>.ipynb`."""

    path: Path

    @property
    def number(self) -> str:
        return self.path.stem.split("_", 1)[0]

    @property
    def name(self) -> str:
        return self.path.stem

    @cached_property
    def title(self) -> str:
        """The first heading of the notebook."""
        for cell in json.loads(self.path.read_text(encoding="utf-8"))["cells"]:
            for line in "".join(cell["source"]).splitlines():
                if cell["cell_type"] == "markdown" and line.startswith("#"):
                    return line.lstrip("# ").strip()
        return self.name


@dataclass(frozen=True)
class Settings:
    """What overrides a lesson's parameters cell. None leaves the notebook's own value."""

    mode: str = "learner"
    scale: str = "quick"
    device: str | None = None
    model: str | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, value, known in (("mode", self.mode, MODES), ("scale", self.scale, SCALES)):
            if value not in known:
                raise LessonError(f"Unknown {name} {value!r}; choose {' or '.join(known)}.")

    def parameters(self) -> dict[str, Any]:
        """The parameters as papermill injects them: upper-case names, unset ones left out."""
        values = {
            "MODEL": self.model,
            "DEVICE": self.device,
            "SCALE": self.scale,
            "MODE": self.mode,
            "SEED": self.seed,
        }
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class LessonRun:
    """How one execution went. `cells` counts code cells that ran; `error` is None when all did."""

    lesson: Lesson
    mode: str
    executed: Path
    cells: int
    code_cells: int
    seconds: float
    error: str | None

    @property
    def ok(self) -> bool:
        return self.error is None


def notebooks_dir() -> Path:
    """The folder of the lessons: of the clone labcore is installed from, else `./notebooks`.

    Raises LessonError when neither exists: lessons come with a clone, not with an installed wheel.
    """
    for folder in (Path(__file__).parents[2] / "notebooks", Path.cwd() / "notebooks"):
        if folder.is_dir():
            return folder
    raise LessonError("There is no notebooks folder here; run this inside a clone of the repository.")


def lessons(folder: Path | None = None, *, suffix: str = ".ipynb") -> list[Lesson]:
    """All lessons, in the order of their numbers; with suffix ".py" their percent scripts."""
    return [Lesson(path) for path in sorted((folder or notebooks_dir()).glob(f"[0-9][0-9]_*{suffix}"))]


def front_page(*, suffix: str = ".ipynb") -> Lesson:
    """The page before the first lesson, `notebooks/index.ipynb`; it is no lesson and has no number."""
    return Lesson(notebooks_dir() / f"index{suffix}")


def find(names: Iterable[str], known: Sequence[Lesson] | None = None) -> list[Lesson]:
    """Lessons by number ("1", "01") or name ("01_introduction", "introduction"), among `known` or all.

    Raises LessonError with the nearest names when one is unknown.
    """
    known = lessons() if known is None else known
    return [_find_one(name, known) for name in names]


def _find_one(name: str, known: Sequence[Lesson]) -> Lesson:
    wanted = Path(name).stem.lower()
    wanted = wanted.zfill(2) if wanted.isdigit() else wanted
    for lesson in known:
        if wanted in (lesson.number, lesson.name, lesson.name.split("_", 1)[-1]):
            return lesson
    names = [lesson.name for lesson in known]
    by_slug = {lesson.name.split("_", 1)[-1]: lesson.name for lesson in known} | {n: n for n in names}
    near = dict.fromkeys(by_slug[match] for match in difflib.get_close_matches(wanted, by_slug, n=3))
    offer = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names) or 'none yet'}."
    raise LessonError(f"There is no lesson {name!r}; {offer}")


def run_lesson(
    lesson: Lesson,
    settings: Settings,
    out: Path,
    *,
    on_cell: OnCell | None = None,
    cell_timeout_s: int | None = None,
) -> LessonRun:
    """Execute one lesson and write it to `out/<name>.<mode>.ipynb`.

    on_cell(done, total) is called after each cell. A cell that runs for longer than `cell_timeout_s`
    fails the lesson. Never raises for what happens inside of the notebook: see `LessonRun.error`.
    """
    out.mkdir(parents=True, exist_ok=True)
    executed = (out / f"{lesson.name}.{settings.mode}.ipynb").resolve()
    started = time.perf_counter()
    with kernel_environment(out / "executed"):
        Results(lesson.number, settings.mode).path.unlink(missing_ok=True)
        error = _execute(lesson, executed, settings.parameters(), on_cell, cell_timeout_s)
    seconds = time.perf_counter() - started
    code = [cell for cell in _cells(executed) if cell["cell_type"] == "code"]
    ran = sum(cell["execution_count"] is not None for cell in code)
    return LessonRun(lesson, settings.mode, executed, ran, len(code), seconds, error)


def _execute(
    lesson: Lesson, executed: Path, parameters: dict[str, Any], on_cell: OnCell | None, timeout_s: int | None
) -> str | None:
    """Run papermill; return what went wrong as one line, or None."""
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    _register_engine()
    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        papermill.execute_notebook(
            lesson.path,
            executed,
            parameters=parameters,
            engine_name="labcore",
            kernel_name="python3",
            progress_bar=False,
            cwd=lesson.path.parent,
            execution_timeout=timeout_s,
            on_cell=on_cell,
            extra_arguments=KERNEL_ARGUMENTS,
        )
    except PapermillExecutionError as failure:
        return f"cell {failure.exec_count}: {failure.ename}: {_first_line(failure.evalue)}"
    except DeadKernelError:
        return "the kernel died, most often because memory ran out"
    except CellTimeoutError:
        return f"a cell ran for more than {timeout_s} s"
    return None


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else ""


def _cells(path: Path) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return cells


def _register_engine() -> None:
    """Teach papermill an engine that reports each finished cell (its own can only draw a tqdm bar)."""
    from papermill.engines import NBClientEngine, papermill_engines

    class ReportingEngine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **kwargs: Any) -> None:
            on_cell = kwargs.pop("on_cell", None)
            complete, total = nb_man.cell_complete, len(nb_man.nb.cells)

            def complete_and_report(cell: Any, cell_index: int = 0, **more: Any) -> None:
                complete(cell, cell_index, **more)
                if on_cell is not None:
                    on_cell(cell_index + 1, total)

            nb_man.cell_complete = complete_and_report
            super().execute_managed_notebook(nb_man, kernel_name, **kwargs)

    papermill_engines.register("labcore", ReportingEngine)


def run_lessons(
    chosen: Sequence[Lesson], settings: Settings, out: Path, *, console: Console | None = None
) -> list[LessonRun]:
    """Execute lessons one after the other (they measure, so never side by side), with progress bars."""
    console = console or Console()
    runs: list[LessonRun] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    say = lines(console)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        for lesson in chosen:
            task = progress.add_task(lesson.name, total=len(_cells(lesson.path)))
            say(f"{lesson.name}: begins")

            def on_cell(done: int, total: int, task: Any = task, name: str = lesson.name) -> None:
                progress.update(task, completed=done, total=total)
                if done == total or 4 * done // total > 4 * (done - 1) // total:
                    say(f"{name}: cell {done} of {total}")

            run = run_lesson(lesson, settings, out, on_cell=on_cell)
            if not run.ok:
                progress.console.print(f"[red]{escape(lesson.name)} failed[/red]: {escape(run.error or '')}")
            runs.append(run)
    return runs


def summary_table(runs: Sequence[LessonRun]) -> Table:
    """Lessons, cells, seconds and failures, with where each executed notebook lies."""
    failures = sum(not run.ok for run in runs)
    table = Table(title=f"{len(runs)} lessons, {failures} failed", title_justify="left")
    table.add_column("lesson")
    table.add_column("mode")
    table.add_column("cells", justify="right")
    table.add_column("seconds", justify="right")
    table.add_column("result", overflow="fold")
    table.add_column("executed notebook", overflow="fold")
    for run in runs:
        result = "[green]ok[/green]" if run.ok else f"[red]{escape(run.error or '')}[/red]"
        cells, seconds = f"{run.cells}/{run.code_cells}", f"{run.seconds:.1f}"
        table.add_row(run.lesson.name, run.mode, cells, seconds, result, str(_shown(run.executed)))
    return table


def _shown(path: Path) -> Path:
    """A path relative to the working folder where it can be."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
