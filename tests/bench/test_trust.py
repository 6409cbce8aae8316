"""A share above its ceiling: measured again, and marked where it stays. All times and rates are made up."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from labcore.bench import cache, cli, cli_prefill, cli_suite, kernels, prefill, quant, serving, trust
from labcore.bench.compare import compare
from labcore.bench.compare_runs import Run
from labcore.bench.generate import bench_generate
from labcore.bench.kernel_case import Case
from labcore.bench.suite_plot import CEILING, EXCEEDED, suite_figure
from labcore.bench.suite_rows import Row, rows_of
from labcore.errors import OutOfMemory
from labcore.perf.peaks import machine_from_roofs
from labcore.shares import DOUBT, TOLERANCE, UNTRUSTED_AGAIN, doubt_of, is_trusted, share_text
from tests.bench.made_up import ROOFS, SMALL, folder_of, model_of

LOW = replace(ROOFS, matmul_flops={"float32": 1.0, "int8": 1.0}, read_bandwidth=1.0, copy_bandwidth=1.0)
MACHINE = {"name": "a processor", "threads": 2}


def test_a_share_is_trusted_up_to_the_tolerance() -> None:
    assert [is_trusted(share) for share in (None, 0.5, 1 + TOLERANCE, 1.06, float("nan"))] == [
        True, True, True, False, False,
    ]  # fmt: skip
    assert [share_text(share) for share in (None, 0.873, 1.0501, 1.4)] == [
        "–",
        "87%",
        f"105% {DOUBT}",
        f"140% {DOUBT}",
    ]
    assert doubt_of([None, 1.0]) == ""
    assert UNTRUSTED_AGAIN in doubt_of([0.5, 1.4])


def measured(shares: list[float], again: list[float] | None) -> tuple[list[str], dict[str, Any]]:
    """What was run, and what came out, of work at these rates under a roof of 1, then of `again`."""
    order: list[str] = []
    work = itertools.chain(shares, itertools.repeat(shares[-1]))
    roof = iter(again or [])

    def run() -> float:
        order.append("work")
        return next(work)

    def look() -> float:
        order.append("roof")
        return next(roof)

    def share(samples: trust.AllSamples) -> float:
        return samples["work"].median(float) / trust.best_rate(samples, "roof", 1.0)

    def roofs(_: trust.AllSamples) -> dict[str, Callable[[], float]]:
        if again is None:
            raise OutOfMemory("nothing is free.")
        return {"roof": look}

    samples = trust.measure_trusted({"work": run}, roofs, share, repeats=2, warmup=0, progress=order.append)
    return order, {"share": share(samples), "samples": len(samples["work"].results)}


def test_a_share_that_can_be_is_measured_once() -> None:
    assert measured([1.04], [9.0, 9.0]) == (["run 1 of 2: work", "work", "run 2 of 2: work", "work"], {
        "share": 1.04, "samples": 2,
    })  # fmt: skip


def test_an_exceeded_roof_is_measured_again_in_turns_with_the_work() -> None:
    order, result = measured([1.4, 1.4, 1.5], [2.0, 1.9])
    assert [one for one in order if one in ("work", "roof")] == [
        "work",
        "work",
        "work",
        "roof",
        "roof",
        "work",
    ]
    assert "140% of its ceiling: measuring again, with the roof in turns" in order
    assert result == {"share": 0.75, "samples": 2}


def test_a_roof_that_cannot_be_measured_again_leaves_what_there_is() -> None:
    order, result = measured([1.4], None)
    assert order[-1] == "the roof cannot be measured again: nothing is free."
    assert result == {"share": 1.4, "samples": 2}


@pytest.mark.parametrize(("rates", "trusted"), [((1.0, 1e15), True), ((1.0, 1.0), False)])
def test_decoding_beside_memory_that_was_slow_for_a_while(
    rates: tuple[float, float], trusted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = iter(rates)

    def reading(*_: object) -> Callable[[], float]:
        rate = next(once)
        return lambda: rate

    monkeypatch.setattr("labcore.bench.generate.reading", reading)
    monkeypatch.setattr("labcore.bench.generate.roofs", lambda _: ROOFS)
    result = bench_generate(model_of(SMALL), prompt_tokens=4, new_tokens=3, repeats=1).to_dict()
    assert result["read_bandwidth"] == pytest.approx(rates[1])
    assert [row["trusted"] for row in result["rows"]] == [trusted]
    assert [row.trusted for row in rows_of("decode", result)] == [trusted] * 2
    table = cli._generate_table({"result": result, "machine": MACHINE})
    assert (DOUBT in next(iter(table.columns[-1].cells))) is not trusted
    assert (UNTRUSTED_AGAIN in str(table.caption)) is not trusted


def of_prefill(_: Path) -> list[dict[str, Any]]:
    result = prefill.bench_prefill(model_of(SMALL), tokens=[6, 8], repeats=1)
    cli_prefill.table({"result": result.to_dict(), "machine": MACHINE})
    return result.to_dict()["rows"]


def of_cache(_: Path) -> list[dict[str, Any]]:
    return cache.bench_cache(model_of(SMALL), ["paged"], contexts=[8], batches=[1], repeats=1).to_dict()[
        "rows"
    ]


def of_quant(folder: Path) -> list[dict[str, Any]]:
    source = str(folder_of(SMALL, folder / "tiny"))
    sizes: dict[str, Any] = {
        "prompt_tokens": 40,
        "new_tokens": 2,
        "batches": [1],
        "repeats": 1,
        "device": "cpu",
    }
    return quant.bench_quant(source, ["int8"], **sizes)["rows"]


def of_serving(folder: Path) -> list[dict[str, Any]]:
    source = str(folder_of(SMALL, folder / "tiny"))
    sizes: dict[str, Any] = {"requests": 1, "batch": 2, "repeats": 1, "device": "cpu"}
    return serving.bench_serving(source, workloads=["tiny"], **sizes)["rows"]


@pytest.mark.parametrize(("rate", "trusted"), [(1e18, True), (1.0, False)])
@pytest.mark.parametrize("bench", [of_prefill, of_cache, of_quant, of_serving])
def test_roofs_of_an_earlier_bad_minute_are_measured_again(
    bench: Callable[[Path], list[dict[str, Any]]], rate: float, trusted: bool, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(serving.WORKLOADS, "tiny", ("fixed:8", "fixed:2"))
    for room in (prefill, cache, quant, serving):
        monkeypatch.setattr(room, "roofs", lambda *_, **__: LOW)
    for name in ("cache", "quant"):
        monkeypatch.setattr(f"labcore.bench.{name}.reading", lambda *_: lambda: rate)
    monkeypatch.setattr("labcore.perf.roof_measuring.reading", lambda *_: lambda: rate)
    monkeypatch.setattr("labcore.perf.roof_measuring.multiplying", lambda *_: lambda: rate)
    rows = bench(tmp_path)
    shares = [row["roofline"] if "roofline" in row else row["ceiling_share"] for row in rows]
    assert [row["trusted"] for row in rows] == [trusted] * len(rows)
    assert all(share < 1 if trusted else share > 1 for share in shares)


@pytest.mark.parametrize(("rate", "trusted"), [(1e18, True), (1.0, False)])
def test_kernels_raise_the_roof_of_products_for_what_follows(
    rate: float, trusted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labcore.perf.roof_measuring.multiplying", lambda *_: lambda: rate)

    class Memory:
        device = torch.device("cpu")

        def rate(self) -> float:
            return 1e18

    call = (lambda: torch.ones(2),)
    case = Case("product", "2", "torch", call, call, moved=8, flops=1000, computes=("float32",))
    row, machine = kernels.measured(case, machine_from_roofs(LOW, 0), Memory(), repeats=1)  # type: ignore[arg-type]
    assert (row.trusted, row.bound) == (trusted, "compute")
    assert machine.rates == {"float32": rate, "int8": 1.0}


def rows() -> list[Row]:
    return [
        Row("prefill", "m, prompt of 8", "labcore", 140.0, "tokens/s", True, 100.0, 1.4),
        Row("prefill", "m, prompt of 9", "labcore", 90.0, "tokens/s", True, 100.0, 0.9),
    ]


def test_the_suite_marks_it_in_its_table_its_json_and_its_figure() -> None:
    console = Console(width=200, record=True)
    console.print(cli_suite.section_table("prefill", rows(), 1.0))
    shown = console.export_text()
    assert f"140% {DOUBT}" in shown
    assert "cannot be trusted" in shown
    assert [row.to_dict()["trusted"] for row in rows()] == [False, True]
    traces = {trace.name: list(trace.y) for trace in suite_figure(rows()).data}
    assert (traces[EXCEEDED], traces[CEILING]) == (["m, prompt of 8"], ["m, prompt of 9"])


def test_a_comparison_says_whose_share_cannot_be_trusted() -> None:
    runs = [Run(name, "all", MACHINE, {}, "", {}, ("m",), tuple(rows())) for name in ("old", "new")]
    notes = [note for note in compare(runs).notes if "trusted" in note]
    assert notes[0] == (
        "old exceeds its ceiling, so that these shares of it cannot be trusted: "
        "m, prompt of 8, labcore: 140% (!)."
    )
    assert len(notes) == 2
