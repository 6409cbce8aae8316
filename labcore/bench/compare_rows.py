"""The numbers of any record as rows of one kind: every benchmark's, and those of a learner's lesson.

What `labcore bench all` brings is read by `suite_rows`; here is what it does not run, and what lessons saved.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from labcore.bench import suite_compare, suite_rows
from labcore.bench.suite_rows import MICRO, MILLI, OURS, RATE, Row

SECTIONS = {"generate": "decode"}  # benchmarks that `labcore bench all` knows by another name
PERCENT = "%"
_ROW = {field.name for field in fields(Row)}


def rows_of_record(record: Mapping[str, Any]) -> list[Row]:
    """Of what a `labcore bench …` wrote. Raises KeyError, TypeError or ValueError for what is none."""
    kind, result = str(record["benchmark"]), dict(record["result"])
    if kind == suite_compare.BENCHMARK:
        return suite_compare.rows_in(record)
    if reader := _READERS.get(kind):
        return [row for row in reader(result) if math.isfinite(row.value)]
    section = SECTIONS.get(kind, kind)
    return suite_rows.rows_of(
        section, {"batch": 1, **result}
    )  # batch: earlier records of generate had one only


def rows_of_lesson(data: Mapping[str, Any]) -> list[Row]:
    """Of a lesson's results: every prediction's measurement, and what it measured as benchmarks do."""
    lesson, model = f"lesson {data['lesson']}", data.get("machine", {}).get("model")
    rows = []
    for name, entry in data["predictions"].items():
        value = entry.get("measured")
        if _is_number(value):
            what = f"{name} {entry.get('question', '')}".strip()
            rows.append(Row(lesson, f"{model}, {what}" if model else what, "", value, _unit(entry), None))
    kept = [entry for entry in data["measurements"].values() if set(entry) >= _ROW]
    return rows + [
        Row(**{name: entry[name] for name in _ROW}) for entry in kept if _is_number(entry["value"])
    ]


def models_of(data: Mapping[str, Any]) -> tuple[str, ...]:
    """The models that a record or a lesson's results speak of, as the names of rows begin with them."""
    result = data.get("result", {})
    results = [one for section in result.get("sections", {}).values() for one in section.values()]
    found = [one.get("model") for one in (result, *results, data.get("machine", {}))]
    found += [entry.get("model") for entry in data.get("measurements", {}).values()]
    return tuple(dict.fromkeys(str(name).removeprefix("shape:") for name in found if name))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _unit(entry: Mapping[str, Any]) -> str:
    """Of a prediction. Where one chose among answers, such as "4×" or "3 dB", what follows the number."""
    unit, value = str(entry.get("unit") or ""), entry.get("value")
    return unit if unit or not isinstance(value, str) else re.sub(r"^[\d.,\s]+", "", value)


# What the records say that `labcore bench all` does not bring


def _model(result: dict[str, Any]) -> str:
    return str(result["model"]).removeprefix("shape:")


def _quality(what: str, engine: str, row: Mapping[str, Any]) -> Iterator[Row]:
    """Perplexity of the same text, and the share of questions answered right."""
    yield Row("quality", f"{what}, perplexity", engine, row["perplexity"]["value"], "", False)
    if row.get("recall"):
        yield Row("quality", f"{what}, recall", engine, 100 * row["recall"]["value"], PERCENT, True)


def _cache_quality(result: dict[str, Any]) -> Iterator[Row]:
    for row in result["rows"]:
        yield from _quality(f"{_model(result)}, caches", f"{OURS} {row['cache']}", row)


def _quant_quality(result: dict[str, Any]) -> Iterator[Row]:
    for part, name in (("rows", "weights"), ("planted", "weights, planted outliers")):
        for row in result.get(part) or ():
            yield from _quality(f"{_model(result)}, {name}", f"{OURS} {row['recipe']}", row)


def _parallel(result: dict[str, Any]) -> Iterator[Row]:
    for row in result["steps"]:
        work = f"{row['new_tokens']} new tokens behind {row['context']}, batch {row['batch']}"
        what = f"{_model(result)}, {row['ranks']} processes, {work}"
        yield Row("parallel", what, OURS, row["step_s"] * 1e3, MILLI, False)
    for row in result["all_reduces"]:
        what = f"all-reduce of {row['bytes']:,} bytes, {row['ranks']} processes"
        yield Row("parallel", what, OURS, row["seconds"] * 1e6, MICRO, False)


def _crowd(result: dict[str, Any]) -> Iterator[Row]:
    """All together, and what of a lone one's speed each has."""
    for row in result["rows"]:
        what = f"{_model(result)}, {row['count']} at once"
        yield Row("crowd", what, OURS, row["tokens_per_s"], RATE, True)
        yield Row("crowd", f"{what}, each of one alone", OURS, 100 * row["share"], PERCENT, True)


_READERS: dict[str, Callable[[dict[str, Any]], Iterator[Row]]] = {
    "cache-quality": _cache_quality,
    "quant-quality": _quant_quality,
    "parallel": _parallel,
    "crowd": _crowd,
}
