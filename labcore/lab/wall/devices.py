"""What machines can do: their two roofs, and tokens per second, device by device."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from labcore.lab import theme
from labcore.lab.units import si, significant
from labcore.lab.wall.entry import Entry, Machine, Speed
from labcore.lab.wall.names import shown_names
from labcore.lab.wall.panel import Panel, canvas, count, logarithmic, marks, wrapped

_DTYPES = ("float32", "bfloat16", "float16")  # what lessons compute in; int8 and fp8 have roofs of their own
MOST_SERIES = 16  # devices, or kinds of speeds, that are told apart: a legend of more is not read
OTHERS = "others"
READS, FLOPS = "reads (GB/s)", "matmul (GFLOP/s)"


@dataclass(frozen=True)
class _Roofed:
    """One machine with both roofs: bytes/s, and FLOP/s in the dtype that it multiplies fastest."""

    name: str
    machine: Machine
    reads: float
    flops: float
    dtype: str


def roofs(entries: Sequence[Entry]) -> Panel:
    """Each machine's two roofs: what it multiplies against what it reads, one symbol per device."""
    title = "Every machine's two roofs"
    made = canvas(title, x="memory read (B/s)", y="best matmul (FLOP/s)")
    known = _roofed(entries)
    rows: list[dict[str, object]] = []
    for place, (device, mine) in enumerate(_grouped((one.machine.device, one) for one in known).items()):
        reads, flops = [one.reads for one in mine], [one.flops for one in mine]
        texts = [f"{one.name}, {one.dtype}, {one.machine.threads} threads" for one in mine]
        made.add_trace(marks(place, device, reads, flops, texts))
        dtypes = ", ".join(sorted({one.dtype for one in mine}))
        rows.append({"device": device, "learners": len(mine), READS: median(reads) / 1e9})
        rows[-1] |= {FLOPS: median(flops) / 1e9, "dtype": dtypes}
    if known:
        logarithmic(made.update_xaxes)
        logarithmic(made.update_yaxes)
    return Panel(title, made, _roofs_finding(known), rows)


def _roofed(entries: Sequence[Entry]) -> list[_Roofed]:
    found = []
    for name, entry in zip(shown_names(entries), entries, strict=True):
        reads = entry.machine.read_bandwidth
        rates = {one: rate for one, rate in entry.machine.matmul_flops.items() if one in _DTYPES}
        if rates and reads:
            dtype = max(rates, key=lambda one: rates[one])
            found.append(_Roofed(name, entry.machine, reads, rates[dtype], dtype))
    return found


def _roofs_finding(known: Sequence[_Roofed]) -> str:
    if not known:
        return "Nobody has shared measured roofs yet: lesson 6 measures them."
    low, high = (pick(known, key=lambda one: one.reads) for pick in (min, max))
    if len(known) == 1:
        only = known[0]
        return (
            f"{only.machine.device} reads {si(only.reads, 'B/s')} and multiplies {si(only.flops, 'FLOP/s')}."
        )
    ridges = [one.flops / one.reads for one in known]
    return (
        f"{len(known)} machines: the fastest memory ({high.machine.device}) reads {si(high.reads, 'B/s')}, "
        f"{significant(high.reads / low.reads)} times the slowest ({low.machine.device}), and ridge points "
        f"lie between {significant(min(ridges))} and {significant(max(ridges))} FLOP/byte."
    )


def speeds(entries: Sequence[Entry]) -> Panel:
    """Tokens per second in decode steps, by device; a symbol for each model, dtype and batch."""
    title = "Tokens per second, decoding (lesson 1)"
    made = canvas(title, x="tokens per second, all sequences together", y="")
    named = zip(shown_names(entries), entries, strict=True)
    known = [(name, entry.machine.device, one) for name, entry in named for one in entry.speeds]
    shown = _most_common(device for _, device, _ in known)
    measured = (
        (_kind(one), (name, device if device in shown else OTHERS, one.tokens_per_s))
        for name, device, one in known
    )
    rows: list[dict[str, object]] = []
    for place, (kind, mine) in enumerate(_grouped(measured).items()):
        label = kind if isinstance(kind, str) else "{}, {}, batch {}".format(*kind)
        rates, where = [speed for *_, speed in mine], [wrapped(device) for _, device, _ in mine]
        made.add_trace(marks(place, label, rates, where, [name for name, *_ in mine]))
        for device, rates in _grouped(((device, speed) for _, device, speed in mine), len(shown) + 1).items():
            rows.append({"device": device, "what": label, "learners": len(rates)})
            rows[-1] |= {"median tok/s": median(rates), "best tok/s": max(rates)}
    if known:
        made.update_xaxes(theme.log_ticks(one.tokens_per_s for *_, one in known))
    return Panel(title, made, _speeds_finding(known), rows)


def _most_common(labels: Iterable[Hashable], most: int = MOST_SERIES) -> set[Hashable]:
    """The labels that are told apart."""
    return {label for label, _ in Counter(labels).most_common(most)}


def _grouped(labelled: Iterable[tuple[Any, Any]], most: int = MOST_SERIES) -> Mapping[Any, list[Any]]:
    """Values by label, in the order of the labels; those of rare labels together at the end, as OTHERS."""
    pairs = list(labelled)
    shown = _most_common((label for label, _ in pairs), most)
    groups: dict[Any, list[Any]] = defaultdict(list)
    for label, value in sorted(pairs, key=lambda pair: (pair[0] not in shown, pair[0])):
        groups[label if label in shown else OTHERS].append(value)
    return groups


def _kind(one: Speed) -> tuple[str, str, int]:
    return one.model, one.dtype, one.batch


def _speeds_finding(known: Sequence[tuple[str, str, Speed]]) -> str:
    """About what most learners measured."""
    if not known:
        return "Nobody has shared tokens per second yet: lesson 1 measures them."
    kinds = [_kind(one) for *_, one in known]
    usual = max(sorted(set(kinds)), key=kinds.count)
    mine = sorted(
        ((one.tokens_per_s, device) for _, device, one in known if _kind(one) == usual), reverse=True
    )
    what = "{}, {}, batch {}".format(*usual)
    if len(mine) == 1:
        return f"{what}: {significant(mine[0][0])} tokens per second on {mine[0][1]}."
    middle = significant(median(speed for speed, _ in mine))
    return (
        f"{what}, {count(len(mine), 'machine')}: the median decodes {middle} tokens per second, "
        f"the fastest ({mine[0][1]}) {significant(mine[0][0])}, "
        f"{significant(mine[0][0] / mine[-1][0])} times the slowest ({mine[-1][1]})."
    )
