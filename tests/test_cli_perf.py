"""roofs, forecast, profile, bench predict and bench parallel, as a user meets them; no timing is judged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import labcore
from labcore.bench.predict import bench_predict
from labcore.cli import app
from labcore.perf import roofline
from labcore.perf.roofline import Roofs

runner = CliRunner()
ROOFS = Roofs(
    device="cpu", device_name="AMD Ryzen 9 7950X 16-Core Processor", threads=2, torch_version="2",
    matmul_flops={"float32": 1.15e12, "float16": 1e12}, matmul_shapes={"float32": (8, 8, 8)},
    read_bandwidth=4e10, copy_bandwidth=3e10, launch_overhead_s=2e-6, working_set_bytes=1 << 28,
    measured_at="2026-01-01T00:00:00+00:00", seconds=3.2, matmul_by_rows={"float32": ((1, 1e10), (8, 5e10))},
    bandwidth_by_size=((1 << 20, 1e11, 9e10), (1 << 28, 4e10, 3e10)),
)  # fmt: skip


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Roofs that the test makes up, kept nowhere."""
    monkeypatch.setenv("LABCORE_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(roofline, "measure_roofs", lambda device, dtypes: ROOFS)


def test_roofs_are_shown_beside_the_data_sheet(measured: None) -> None:
    shown = runner.invoke(app, ["roofs", "--device", "cpu"], catch_exceptions=False).output
    assert "1,150.0 GFLOP/s │ 2,300 GFLOP/s │   50%" in shown
    assert "AMD Ryzen 9 7950X product page" in shown
    assert "100.0 GB/s" in shown
    kept = json.loads(runner.invoke(app, ["roofs", "--device", "cpu", "--json"]).stdout)
    assert kept["read_bandwidth"] == 4e10


def test_an_unknown_device_still_has_roofs(measured: None, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = replace(ROOFS, device_name="Abacus 1")
    monkeypatch.setattr(roofline, "measure_roofs", lambda device, dtypes: unknown)
    assert "No data sheet under this name" in runner.invoke(app, ["roofs", "--device", "cpu"]).output


def test_forecast_of_a_catalogued_device_and_of_this_one(measured: None) -> None:
    words = ["forecast", "llama-2-7b", "--gpu", "a100-80gb-sxm", "--batch", "8"]
    shown = runner.invoke(app, words, catch_exceptions=False).output
    assert "8 × 1,024 tokens on NVIDIA A100 80 GB SXM" in shown
    assert "123" in shown
    best = runner.invoke(app, [*words[:4], "--tpot-ms", "20"], catch_exceptions=False).output
    assert "50 × 1,024 tokens" in best
    here = runner.invoke(app, ["forecast", "smollm2-135m", "--dtype", "float32"], catch_exceptions=False)
    assert "Ryzen" in here.output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--gpu", "h1000"], "nearest: h200, h100-sxm"),
        (["--gpu", "a10", "--tpot-ms", "1"], "more than the 1 ms asked for"),
        (["--gpu", "tpu-v5e", "--dtype", "float32"], "No float32 rate"),
    ],
)
def test_forecasts_that_cannot_be(words: list[str], told: str) -> None:
    result = runner.invoke(app, ["forecast", "llama-2-7b", *words])
    assert result.exit_code == 2
    assert told in " ".join(result.stderr.split())


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_profile_says_where_the_time_goes(measured: None, tmp_path: Path, phase: str) -> None:
    trace = tmp_path / "deep" / "trace.json"
    words = ["profile", "--phase", phase, "--context", "16", "--device", "cpu", "--trace", str(trace)]
    shown = runner.invoke(app, [*words, "--readable"], catch_exceptions=False).output
    assert f"{phase} of story, 16 tokens" in shown
    assert "matmul" in shown
    assert "Waits for " in shown
    assert json.loads(trace.read_text())["traceEvents"]


def test_steps_are_predicted_in_their_bracket(tmp_path: Path) -> None:
    out = tmp_path / "predict.json"
    words = "bench predict --model story --device cpu --context 16 --batch 2 --prompt 8 --repeats 3"
    shown = runner.invoke(app, [*words.split(), "--out", str(out)], catch_exceptions=False).output
    assert "of 2 within 25 %" in shown
    data = json.loads(out.read_text())
    assert data["benchmark"] == "predict"
    decode, prefill = data["result"]["rows"]
    assert (decode["phase"], decode["batch"], decode["context"]) == ("decode", 2, 16)
    assert (prefill["phase"], prefill["batch"], prefill["context"]) == ("prefill", 1, 8)
    for row in (decode, prefill):
        assert row["low_s"] <= row["expected_s"] <= row["high_s"]
        assert row["error"] == pytest.approx(row["expected_s"] / row["measured_s"] - 1)
        assert row["overhead_s"] > 0


def test_a_result_knows_its_misses() -> None:
    model = labcore.load("story", device="cpu")
    result = bench_predict(model, contexts=(8,), batches=(1,), prompts=(), repeats=3)
    (row,) = result.rows
    near, far = (replace(result, rows=[replace(row, error=error)]) for error in (-0.2, 0.3))
    assert len(near.within()) == 1
    assert far.within() == []
    assert result.to_dict()["rows"][0]["phase"] == "decode"


def test_parallel_measures_steps_and_all_reduces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    out = tmp_path / "parallel.json"
    words = "bench parallel --model story --ranks 1 --ranks 2 --context 8 --prompt 8 --repeats 5"
    shown = runner.invoke(app, [*words.split(), "--out", str(out)], catch_exceptions=False).output
    assert "prefill of 8" in shown
    result = json.loads(out.read_text())["result"]
    assert [step["ranks"] for step in result["steps"]] == [1, 1, 2, 2]
    assert result["all_reduces"][0]["bytes"] == 1024
