"""Lesson 6: the roofline, predicted and measured, residuals, the wall. Golden values; no timing is judged."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from labcore.bench.predict import PredictResult, Row
from labcore.catalog import architecture, gpu, gpus
from labcore.errors import DeviceError
from labcore.lab import measured_roofs, residuals, roofline, roofline_rows
from labcore.lab import session as sessions
from labcore.lab.figures import roofline as figures
from labcore.lab.session import Session
from labcore.lab.widgets import roofline as widgets
from labcore.perf.peaks import Machine, machine_from_gpu
from labcore.perf.roofline import Roofs

LLAMA, A100 = architecture("llama-2-7b"), gpu("a100-80gb-sxm")
HERE = Machine("here", 24 << 30, 2e10, {"float32": 1e11}, measured=True, by_rows={"float32": ((1, 1e9),)})
ROOFS = Roofs(
    device="cpu", device_name="Abacus 1", threads=1, torch_version="2",
    matmul_flops={"float32": 1e11, "int8": 3e11},
    matmul_shapes={"float32": (1, 1, 1)}, read_bandwidth=2e10, copy_bandwidth=1e10, launch_overhead_s=2e-6,
    working_set_bytes=1 << 28, measured_at="2026-01-01T00:00:00+00:00", seconds=1.0,
    bandwidth_by_size=((1 << 18, 1e11, 9e10), (1 << 28, 2e10, 1e10)),
    matmul_by_rows={"float32": ((1, 1e10), (8, 5e10)), "int8": ((8, 1e11),)},
)  # fmt: skip


def row(phase: str = "decode", batch: int = 1, context: int = 64, **changes: float) -> Row:
    made = Row(
        phase=phase, batch=batch, context=context, measured_s=0.05, spread_s=0.001, expected_s=0.045,
        low_s=0.04, high_s=0.06, compute_s=0.01, memory_s=0.04, overhead_s=0.002, error=-0.1,
        bandwidth=2e10, flops=1e11, mbu=0.8, mfu=0.1,
    )  # fmt: skip
    return replace(made, **changes)


def result(*rows: Row) -> PredictResult:
    return PredictResult("m", "float32", 30, 7, 0.002, 0.005, list(rows))


def test_every_operation_lies_on_the_roofs() -> None:
    found = roofline.roofline_of(LLAMA, HERE, batch=4, context=300, dtype="float32")
    for phase in (found.prefill, found.decode):
        for point in phase.points:
            if point.intensity:
                assert point.rate == pytest.approx(min(1e11, 2e10 * point.intensity))
                assert (point.bound == "compute") == (point.intensity > found.ridge)
        assert sum(point.share for point in phase.points) == pytest.approx(1)
    assert found.ridge == 5


def test_batching_moves_linear_layers_and_leaves_attention() -> None:
    one, many = (
        roofline.roofline_of(LLAMA, machine_from_gpu(A100), batch=batch, context=1024, dtype="float16")
        for batch in (1, 256)
    )

    def of(found: roofline.Roofline, name: str) -> roofline.OpPoint:
        return next(point for point in found.decode.points if point.name == name)

    assert of(one, "down_proj").bound == "memory"
    assert of(many, "down_proj").bound == "compute"
    assert of(one, "attention_scores").intensity == pytest.approx(of(many, "attention_scores").intensity)
    assert of(many, "attention_scores").bound == "memory"
    assert "bound by memory" in one.finding()


def test_the_figure_shows_operations_measured_steps_and_the_data_sheet() -> None:
    measured = roofline.measured_points([row(), row("prefill", context=32)], LLAMA, "float32")
    assert [one.phase for one in measured] == ["decode", "prefill"]
    found = roofline.roofline_of(LLAMA, HERE, batch=1, context=64, dtype="float32", measured=measured)
    figure = figures.roofline_figure(found, gpu("epyc-9654"), "float32")
    names = [trace.name for trace in figure.data]
    assert names[:2] == ["the roofs", "data sheet"]
    predicted, stars = figure.data[-2:]
    assert names[-2:] == ["steps, predicted", "steps, measured"]
    assert list(stars.y) == pytest.approx([one.rate for one in measured])
    assert predicted.y[0] / stars.y[0] == pytest.approx(0.05 / 0.045)
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"


@pytest.mark.parametrize("name", ["llama-2-7b", "mixtral-8x7b", "deepseek-v3", "gemma-3-27b"])
def test_the_roofline_view_of_any_model_on_any_machine(name: str) -> None:
    shapes = {name: architecture(name)}
    seen = set()
    for machine in gpus():
        view = widgets.roofline_view(
            HERE, None, shapes, "own", "float32", (),
            batch=8, context=1024, model=name, machine=machine, precision="bfloat16",
        ) if "bfloat16" in gpu(machine).flops or "float32" in gpu(machine).flops else None  # fmt: skip
        if view is not None:
            seen.add(view.finding)
            assert view.rows
    assert len(seen) > 10
    with pytest.raises(DeviceError, match="No float32 rate"):
        widgets.roofline_view(
            HERE, None, shapes, "own", "float32", (),
            batch=8, context=1024, model=name, machine="tpu-v5e", precision="float32",
        )  # fmt: skip


def test_the_tradeoff_shows_both_sides_of_the_wall() -> None:
    settings = {"model": "llama-2-7b", "machine": "a100-80gb-sxm", "precision": "float16", "context": 1024}
    view = widgets.tradeoff_view(HERE, **settings, picture=0)
    fits, beyond = view.figure.data
    assert fits.text[-1] == "B=123"
    assert all(int(text[2:]) > 123 for text in beyond.text)
    stacked = widgets.tradeoff_view(HERE, **settings, picture=1)
    assert [bar.name for bar in stacked.figure.data][:2] == ["weights", "cache"]
    assert "the wall stands at 123 sequences" in view.finding
    big = widgets.tradeoff_view(HERE, **(settings | {"model": "llama-2-70b", "machine": "a10"}), picture=0)
    assert "not one sequence fits" in big.finding


def test_residuals_add_up_to_the_measurement() -> None:
    (one,) = residuals.split_residuals(result(row()), architecture("smollm2-135m"))
    assert one.measured_s == pytest.approx(0.05)
    assert one.napkin_s == pytest.approx(134_515_008 * 4 / 2e10, rel=0.01)
    assert one.rest_s == pytest.approx(0.005)
    assert one.over == pytest.approx(0.05 / one.napkin_s)
    figure = figures.residual_figure([one])
    assert sum(bar.x[0] for bar in figure.data) == pytest.approx(one.over)
    assert one.label in residuals.residual_finding([one])


def test_misses_are_named() -> None:
    missed = row(batch=8, error=-0.4, expected_s=0.03)
    told = residuals.prediction_finding(result(row(), missed))
    assert told.startswith("1 of 2 steps came within 25 %")
    assert "decode 8 × 64 took 50 ms, expected 30 ms" in told
    assert "None missed" in residuals.prediction_finding(result(row()))
    assert residuals.prediction_rows(result(row()))[0]["off by"] == "-10%"
    doubted = result(replace(row(), mbu=1.4))
    assert residuals.prediction_rows(doubted)[0]["MBU"] == "140% (!)"
    assert "cannot be trusted" in residuals.prediction_finding(doubted)
    assert "trusted" not in told


def test_lesson_1s_guess_is_scored(session: Session) -> None:
    without = residuals.score_guess(expected=40.0, measured=36.0)
    assert "no guess was kept" in without
    first = sessions.Results.open("01", session.mode)
    first.record("predictions", "01.5", value=72.0, unit="tok/s", locked=True)
    first.save()
    told = residuals.score_guess(expected=40.0, measured=36.0)
    assert "you said 72 tok/s" in told
    assert "off by 2×" in told
    assert session.results.measurements["guess"] == {"expected": 40.0, "measured": 36.0}


def test_measured_roofs_beside_a_data_sheet() -> None:
    plain = measured_roofs.measured_roof_rows(ROOFS)
    assert plain[0] == {
        "roof": "matrix products in float32",
        "measured": "100 GFLOP/s",
        "data sheet": None,
        "share": None,
    }
    beside = measured_roofs.measured_roof_rows(ROOFS, gpu("ryzen-7950x"))
    assert beside[0]["share"] == "4%"
    assert "no data sheet under this name" in measured_roofs.measured_roof_finding(ROOFS)
    assert "5× as fast as memory" in measured_roofs.measured_roof_finding(ROOFS)
    assert measured_roofs.row_rows(ROOFS)[1] == {
        "rows": 8,
        "float32 (GFLOP/s)": 50.0,
        "int8 (GFLOP/s)": 100.0,
    }
    assert len(measured_roofs.size_rows(ROOFS)) == 2
    for figure in (figures.bandwidth_figure(ROOFS, A100), figures.rows_figure(ROOFS, A100)):
        assert all(math.isfinite(value) for trace in figure.data for value in trace.y)


def test_golden_values_on_paper() -> None:
    assert [row["FLOP per byte"] for row in roofline_rows.intensity_rows()] == [
        "1.0",
        "8.0",
        "120.5",
        "409.6",
    ]
    a100 = roofline_rows.critical_rows()[1]
    assert [a100[f"{kind} weights"] for kind in ("float16", "int8", "int4")] == [153, 77, 38]
    steps = roofline_rows.step_rows_on_paper(LLAMA, A100)
    assert [one["step (ms)"] for one in steps[:3]] == ["6.87", "8.72", "15.04"]
    assert [one["tok/s"] for one in steps[:3]] == ["145.5", "917.9", "2128.3"]
    assert steps[-1]["batch"] == 123
    seven, eight = roofline_rows.wall_rows()
    assert seven["cache = weights at batch, 1024 tokens"] == 25
    assert seven["never compute-bound beyond (tokens)"] == 169
    assert eight["never compute-bound beyond (tokens)"] == 822
    assert [row["step (ms)"] for row in roofline_rows.pod_rows()] == ["5.00", "12.17"]
