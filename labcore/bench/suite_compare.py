"""Two records of `labcore bench all` beside each other: what became faster, what slower, what is new."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from labcore.bench.suite_rows import Row
from labcore.errors import LabError

BENCHMARK = "all"
# Where two records differ in these, their numbers differ for more reasons than the code.
CONDITIONS = (
    ("device", ("machine", "device")),
    ("device's name", ("machine", "name")),
    ("number of threads", ("machine", "threads")),
    ("torch version", ("machine", "torch_version")),
    ("--quick", ("result", "quick")),
)


@dataclass(frozen=True)
class Change:
    """A row that both runs have."""

    old: Row
    new: Row

    @property
    def ratio(self) -> float:
        """The new value over the old one."""
        return self.new.value / self.old.value

    @property
    def faster(self) -> float:
        """How many times as good the new value is; above 1 is better, whatever the unit."""
        return self.ratio if self.new.higher_is_better else 1 / self.ratio


@dataclass(frozen=True)
class Comparison:
    """Joined by section, what and engine. warnings: sentences on what else differs."""

    changes: list[Change]
    only_old: list[Row]
    only_new: list[Row]
    warnings: list[str]


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> Comparison:
    """Two records, as `read` gives them, in the order of the new one."""
    before, after = ({row.key: row for row in rows_in(record)} for record in (old, new))
    return Comparison(
        changes=[Change(before[key], row) for key, row in after.items() if key in before],
        only_old=[row for key, row in before.items() if key not in after],
        only_new=[row for key, row in after.items() if key not in before],
        warnings=_warnings(old, new),
    )


def _warnings(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    found = []
    for words, (part, name) in CONDITIONS:
        before, after = old[part].get(name), new[part].get(name)
        if before != after:
            found.append(f"The two differ in the {words}: {before} before, {after} now.")
    return found


def read(path: Path) -> dict[str, Any]:
    """A record that `labcore bench all --out` wrote. Raises LabError for what is no such file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LabError(f"There is no file {str(path)!r} to compare with; write one with --out.") from None
    except (OSError, ValueError) as error:
        raise LabError(
            f"{str(path)!r} cannot be read as JSON ({error}); give a file that `labcore bench all --out` "
            "wrote."
        ) from None
    if not _is_record(data):
        raise LabError(
            f"{str(path)!r} holds no record of `labcore bench all`; give a file that its --out wrote."
        )
    found: dict[str, Any] = data
    return found


def _is_record(data: Any) -> bool:
    if not isinstance(data, dict) or data.get("benchmark") != BENCHMARK:
        return False
    if not isinstance(data.get("machine"), dict) or not isinstance(data.get("result"), dict):
        return False
    try:
        rows = rows_in(data)
    except (KeyError, TypeError):
        return False
    return all(isinstance(row.value, (int, float)) and row.value > 0 for row in rows)


def rows_in(record: Mapping[str, Any]) -> list[Row]:
    """The rows of a record; fields that a later version added are passed over."""
    known = {field.name for field in fields(Row)}
    return [
        Row(**{name: value for name, value in row.items() if name in known})
        for row in record["result"]["rows"]
    ]
