"""Runs to compare: found by path, by folder or by the name of a reference run, and read into one kind."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labcore import catalog
from labcore.bench.compare_rows import models_of, rows_of_lesson, rows_of_record
from labcore.bench.suite_rows import Row
from labcore.errors import LabError

# What a measurement was made with; where two runs differ in these, so do their numbers.
SETTINGS = (
    "dtype", "quick", "layers", "batch", "prompt_tokens", "prompts", "new_tokens", "requests", "token_budget",
    "stories", "questions", "positions", "seed", "scale",
)  # fmt: skip
DTYPES = re.compile(r"\b(float32|bfloat16|float16)\b")
UNKNOWN = "unknown device"


@dataclass(frozen=True)
class Run:
    """One file of measurements. kind: the benchmark, or "lesson 01". settings: what of `SETTINGS` it has.

    result: all that the benchmark wrote; nothing of a lesson.
    """

    name: str
    kind: str
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    measured_at: str
    settings: Mapping[str, str]
    models: tuple[str, ...]
    rows: tuple[Row, ...]
    result: Mapping[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> str:
        """Its name; of a processor with the threads that were used."""
        name, threads = self.machine.get("name", UNKNOWN), self.machine.get("threads")
        return f"{name}, {threads} threads" if self.machine.get("device") == "cpu" and threads else str(name)

    @property
    def software(self) -> str:
        """Packages and versions."""
        return ", ".join(f"{package} {version}" for package, version in self.versions.items())

    @property
    def date(self) -> str:
        """The day, ISO 8601."""
        return self.measured_at[:10] or "undated"

    @property
    def subject(self) -> str:
        """The model and number format, where it is about one."""
        named = (
            self.models[0] if len(self.models) == 1 else f"{len(self.models)} models" if self.models else ""
        )
        return " ".join(filter(None, (named, self.settings.get("dtype", ""))))

    @property
    def label(self) -> str:
        """Everything that tells a run from others, in one line."""
        return (
            f"{self.name}: {', '.join(filter(None, (self.subject, self.device, self.software, self.date)))}"
        )

    def model_of(self, row: Row) -> str | None:
        """The model that a row of this run speaks of, None where it is about none."""
        return next((model for model in self.models if row.what.startswith(f"{model}, ")), None)


def reference_names() -> list[str]:
    """The runs that come with the lab, in `data/reference_runs`."""
    return sorted(path.stem for path in (catalog.data_dir() / "reference_runs").glob("*.json"))


def reference_path(name: str) -> Path:
    """The file of a reference run. Raises LabError with the nearest names for an unknown one."""
    known = reference_names()
    wanted = name.removesuffix(".json")
    if len(Path(name).parts) > 1:
        raise LabError(
            f"There is no file or folder {name!r}; name one, or a reference run: {', '.join(known)}."
        )
    if wanted in known:
        return catalog.data_dir() / "reference_runs" / f"{wanted}.json"
    near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.4)
    near += [each for each in known if wanted and wanted in each and each not in near][:3]
    offer = f"the nearest of them: {', '.join(near)}" if near else f"those are {', '.join(known)}"
    raise LabError(f"There is no file and no reference run {name!r}; {offer}.")


def find(names: Sequence[str]) -> tuple[list[Run], list[str]]:
    """The runs of files, folders (and the folders in them) and reference names; each file once.

    Beside them a sentence for each file of a folder that holds no run. Raises LabError for a name that is
    nothing, for a named file that holds no run, and for a folder without any.
    """
    paths: dict[Path, bool] = {}  # whether it was named itself
    for name in names:
        for path in _paths(name):
            paths[path] = paths.get(path, False) or not Path(name).is_dir()
    found, passed_over = [], []
    for (path, named), short in zip(paths.items(), _short_names(list(paths)), strict=True):
        try:
            found.append(read(path, short))
        except LabError as error:
            if named:
                raise
            passed_over.append(f"Passed over: {error}")
    if not found:
        raise LabError(
            f"Nothing to compare in {', '.join(names)}: no file there holds a run that can be read."
        )
    return found, passed_over


def _paths(name: str) -> list[Path]:
    if not os.path.exists(name):  # False too for what cannot be a path
        return [reference_path(name).resolve()]
    path = Path(name).resolve()
    if not path.is_dir():
        return [path]
    found = sorted(path.glob("*.json")) + sorted(path.glob("*/*.json"))
    if not found:
        raise LabError(
            f"The folder {name!r} holds no .json file, nor do the folders in it; name one that does."
        )
    return found


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Stems, with as many folders before them as tell them apart."""
    names = [path.with_suffix("") for path in paths]

    def tail(path: Path, parts: int) -> str:
        return "/".join(path.parts[-parts:])

    made = []
    for path in names:
        parts = 1
        while sum(tail(path, parts) == tail(other, parts) for other in names) > 1 and parts < len(path.parts):
            parts += 1
        made.append(tail(path, parts))
    return made


def read(path: Path, name: str | None = None) -> Run:
    """One file. Raises LabError for what cannot be read and for what is no run."""
    data = _json(path)
    is_record = isinstance(data, dict) and isinstance(data.get("benchmark"), str)
    is_lesson = isinstance(data, dict) and isinstance(data.get("lesson"), str)
    if not (is_record or is_lesson):
        raise LabError(
            f"{path} holds no run; give what `labcore bench … --out` or a lesson wrote, such as "
            "runs/results/lesson-01.json."
        )
    try:
        run = _of_record(data, name or path.stem) if is_record else _of_lesson(data, name or path.stem)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        kind = f"`labcore bench {data['benchmark']}`" if is_record else "a lesson"
        raise LabError(
            f"{path} is no whole record of {kind} ({type(error).__name__}: {error}); measure it again."
        ) from None
    if not run.rows:
        raise LabError(f"{path} holds no measurement yet; run the lesson or the benchmark first.")
    return run


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise LabError(f"{path} is damaged: it is no JSON ({error}); restore it, or measure again.") from None
    except OSError as error:
        raise LabError(
            f"{path} could not be read ({error.strerror or error}); mend its permissions."
        ) from None


def _of_record(data: dict[str, Any], name: str) -> Run:
    machine = data["machine"]
    others = {package: version for package, version in data["versions"].items() if version}
    rows = tuple(rows_of_record(data))
    return Run(
        name, data["benchmark"], machine, {"torch": machine["torch_version"], **_but_torch(others)},
        data["measured_at"], _settings(data["result"], rows), models_of(data), rows, data["result"],
    )  # fmt: skip


def _of_lesson(data: dict[str, Any], name: str) -> Run:
    machine = data["machine"]
    versions = {package: machine.get(f"{package}_version") for package in ("torch", "labcore")}
    kind = f"lesson {data['lesson']}"
    return Run(
        name, kind, machine, {package: version for package, version in versions.items() if version},
        data.get("saved_at", ""), _settings(machine, ()), models_of(data), tuple(rows_of_lesson(data)),
    )  # fmt: skip


def _but_torch(versions: Mapping[str, str]) -> dict[str, str]:
    return {package: version for package, version in versions.items() if package != "torch"}


def _settings(stated: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, str]:
    """What the run states; the number format of a run over quantized weights stands in its engines' names."""
    found = {name: str(stated[name]) for name in SETTINGS if isinstance(stated.get(name), (str, int))}
    sections = [one for section in stated.get("sections", {}).values() for one in section.values()]
    named = {match for row in rows for match in DTYPES.findall(row.engine)}
    named |= {str(one["dtype"]) for one in sections if "dtype" in one}
    if "dtype" not in found and len(named) == 1:
        found["dtype"] = named.pop()
    return found
