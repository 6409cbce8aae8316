"""One kind of row for every benchmark: what was measured, of which engine, beside ours and beside a ceiling.

Each benchmark keeps its own result; what is read from it here is what can be compared from run to run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from labcore.shares import is_trusted

OURS = "labcore"  # how the names of our own engines begin
RATE, MICRO, MILLI = "tokens/s", "µs", "ms"


@dataclass(frozen=True)
class Row:
    """One number. section, what and engine together name it.

    higher_is_better: of the value; None where neither is. ceiling: the best value that the machine allows, in
    the value's unit; None where none is known. ceiling_share: what was reached of it, at most 1 but for
    noise (see `shares.is_trusted`). ours_over: how many times as fast ours is as this engine, on the same
    work; None for our own.
    """

    section: str
    what: str
    engine: str
    value: float
    unit: str
    higher_is_better: bool | None
    ceiling: float | None = None
    ceiling_share: float | None = None
    ours_over: float | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """By which rows of two runs are joined."""
        return self.section, self.what, self.engine

    @property
    def is_ours(self) -> bool:
        """Whether the engine is one of our own."""
        return self.engine.startswith(OURS)

    @property
    def trusted(self) -> bool:
        """Whether its share of the ceiling can be; True where none is known."""
        return is_trusted(self.ceiling_share)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, `trusted` too."""
        return asdict(self) | {"trusted": self.trusted}


def rows_of(section: str, result: dict[str, Any]) -> list[Row]:
    """The rows of one benchmark's result, as its command writes it: engines on the same work side by side,
    with ours held against each peer."""
    rows = [replace(row, section=section) for row in _READERS[section](result)]
    works = list(dict.fromkeys(row.what for row in rows))
    return with_ratios(sorted(rows, key=lambda row: works.index(row.what)))


def with_ratios(rows: Sequence[Row]) -> list[Row]:
    """Peers' rows with `ours_over`: against the first row of our own on the same work."""
    ours: dict[tuple[str, str], Row] = {}
    for row in rows:
        if row.is_ours:
            ours.setdefault(row.key[:2], row)
    return [replace(row, ours_over=_times(ours.get(row.key[:2]), row)) for row in rows]


def _times(ours: Row | None, peer: Row) -> float | None:
    if ours is None or peer.is_ours:
        return None
    return ours.value / peer.value if peer.higher_is_better else peer.value / ours.value


def _faster(what: str, engine: str, value: float, ceiling: float | None) -> Row:
    share = value / ceiling if ceiling else None
    return Row("", what, engine, value, RATE, True, ceiling, share)


def _shorter(what: str, engine: str, value: float, unit: str, ceiling: float | None) -> Row:
    share = ceiling / value if ceiling else None
    return Row("", what, engine, value, unit, False, ceiling, share)


# What each benchmark's result says


def _decode(result: dict[str, Any]) -> Iterator[Row]:
    """Whole runs, and their steps behind the prompt; a run is no faster than its steps are."""
    what = f"{_short(result)}, batch {result['batch']}"
    for row in result["rows"]:
        yield _faster(what, row["engine"], row["tokens_per_s"], result["ceiling_tokens_per_s"])
        if alone := row["decode_tokens_per_s"]:
            steps = f"{what}, steps after the first"
            yield _faster(steps, row["engine"], alone, result["ceiling_tokens_per_s"])


def _prefill(result: dict[str, Any]) -> Iterator[Row]:
    for row in result["rows"]:
        what = f"{_short(result)}, prompt of {row['tokens']}"
        yield _faster(what, row["engine"], row["tokens_per_s"], row["ceiling_tokens_per_s"])


def _cache(result: dict[str, Any]) -> Iterator[Row]:
    """The contiguous cache stands once at each context, and the others beside it."""
    for row in result["rows"]:
        what = f"{_short(result)}, {result['layers']} layers, batch {row['batch']}, context {row['context']}"
        rate = row["batch"] / row["seconds"]
        yield _faster(what, f"{OURS} {row['cache']}", rate, rate / row["ceiling_share"])


def _quant(result: dict[str, Any]) -> Iterator[Row]:
    """Peers are held against ours in as many bits."""
    for row in result["rows"]:
        about = f"{_short(result)}, {bits_of(row['engine'])}"
        what = f"{about}, decode, batch {row['batch']}"
        yield _faster(what, row["engine"], row["decode_tokens_per_s"], row["ceiling_tokens_per_s"])
        if row["prefill_tokens_per_s"]:
            what = f"{about}, prompt of {result['prompt_tokens']}"
            yield _faster(what, row["engine"], row["prefill_tokens_per_s"], None)


_BITS = {8: ("int8", "q8", "fp8"), 4: ("int4", "q4", "nf4"), 3: ("int3",), 2: ("int2",)}


def bits_of(engine: str) -> str:
    """Of the weights, as a name tells them, such as "labcore int8:granularity=channel", "llama.cpp Q4_0"."""
    name = engine.lower().partition(" ")[2]
    found = [bits for bits, signs in _BITS.items() if any(sign in name for sign in signs)]
    return f"{found[0]} bits" if found else "full precision"


def _serving(result: dict[str, Any]) -> Iterator[Row]:
    for row in result["rows"]:
        what = f"{_short(result)}, {row['workload']} requests"
        ceiling = row["tokens_per_s"] / row["roofline"] if row["roofline"] else None
        yield _faster(what, row["engine"], row["tokens_per_s"], ceiling)


def _speculate(result: dict[str, Any]) -> Iterator[Row]:
    """All are ours: without guesses, and with; no roof says how many guesses are right."""
    for row in result["rows"]:
        guessed = f" × {row['guesses']}" if row["guesses"] else ""
        what = f"{_short(result)}, {row['work']}"
        yield _faster(what, f"{row['engine']}{guessed}", row["tokens_per_s"], None)


def _kernels(result: dict[str, Any]) -> Iterator[Row]:
    for row in result["rows"]:
        what, least = f"{row['kernel']}: {row['shape']}", row["ceiling_s"] * 1e6
        yield _shorter(what, OURS, row["seconds"] * 1e6, MICRO, least)
        yield _shorter(what, "reference", row["reference_s"] * 1e6, MICRO, least)


def _predict(result: dict[str, Any]) -> Iterator[Row]:
    """Measured steps beside what was foretold of them, and what they take if all traffic hides."""
    for row in result["rows"]:
        what = f"{_short(result)}, {row['phase']}, {row['batch']} × {row['context']}"
        least = max(row["compute_s"], row["memory_s"]) * 1e3
        yield _shorter(what, OURS, row["measured_s"] * 1e3, MILLI, least)
        yield _shorter(what, "forecast", row["expected_s"] * 1e3, MILLI, least)


def _short(result: dict[str, Any]) -> str:
    return str(result["model"]).removeprefix("shape:")


_READERS: dict[str, Callable[[dict[str, Any]], Iterator[Row]]] = {
    "decode": _decode,
    "prefill": _prefill,
    "cache": _cache,
    "quant": _quant,
    "serving": _serving,
    "speculate": _speculate,
    "kernels": _kernels,
    "predict": _predict,
}
