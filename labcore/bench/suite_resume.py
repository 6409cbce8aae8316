"""An interrupted `labcore bench all` goes on: what its file has, where that was measured in the same way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from labcore.bench import suite_compare
from labcore.bench.suite import LeftOut, SuiteResult
from labcore.errors import LabError

# Of the machine's description; what memory is free changes by the minute.
MACHINE = ("device", "name", "threads", "torch_version", "python_version", "cuda_version", "system")


def read(path: Path, now: Mapping[str, Any]) -> SuiteResult:
    """What the file of an earlier run has. now: a record as it would be written now, with its settings.

    Raises LabError for what is no such file, and where machine, versions or settings are others.
    """
    earlier = suite_compare.read(path)
    result = earlier["result"]
    if "settings" not in result:
        raise LabError(
            f"{path} does not state its settings and cannot be resumed; leave --resume out to measure "
            "everything anew."
        )
    if differences := list(_differences(earlier, now)):
        raise LabError(
            f"{path} cannot be resumed, since its sections were measured in another way: "
            f"{'; '.join(differences)}. Leave --resume out to measure everything anew, or name another --out."
        )
    return SuiteResult(
        quick=result["quick"],
        peers=result["peers"],
        settings=result["settings"],
        rows=suite_compare.rows_in(earlier),
        sections=result["sections"],
        seconds=result["seconds"],
        failed=result["failed"],
        left_out=[LeftOut(**one) for one in result["left_out"]],
    )


def _differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """ "threads: 4 then, 2 now"."""
    for before, after in zip(_conditions(earlier), _conditions(now), strict=True):
        for name in dict.fromkeys((*before, *after)):
            if before.get(name) != after.get(name):
                yield f"{name}: {_said(before.get(name))} then, {_said(after.get(name))} now"


def _conditions(record: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    machine = {name: record["machine"].get(name) for name in MACHINE}
    return machine, record["result"]["settings"], record["versions"]


def _said(value: Any) -> str:
    return (", ".join(value) or "none") if isinstance(value, list) else str(value)
