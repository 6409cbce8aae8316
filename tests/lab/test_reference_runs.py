"""A reference GPU beside the learner: labelled, never in their place, never as if models were equal."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from labcore.bench.compare import compare
from labcore.bench.compare_runs import read
from labcore.bench.predict import PredictResult, Row
from labcore.catalog import data_dir
from labcore.errors import LabError
from labcore.lab import reference_gains, reference_runs
from labcore.lab.figures import reference as figures
from labcore.lab.live import Reading
from labcore.lab.serving_lengths import compare_lengths
from labcore.lab.session import Session
from labcore.lab.shrunk import FULL, Shrunk, ThreeWays
from labcore.lab.units import significant
from labcore.perf.peaks import Machine

PLACE = {
    "name": "a processor",
    "device": "cpu",
    "threads": 2,
    "torch_version": "2.9",
    "labcore_version": "0.1",
}


def stored(name: str) -> dict:
    """The file itself, against which what is shown is held."""
    return json.loads((data_dir() / "reference_runs" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture
def lesson(session: Session) -> Session:
    session.results.machine.update(PLACE)
    return session


@pytest.fixture
def streamed(lesson: Session) -> reference_runs.DecodeBeside:
    """Steps of 10 ms, on a machine that reads ten of them in one."""
    reading = Reading("tiny", 4, tokens=[1] * 5, step_seconds=[0.5, 0.01, 0.01, 0.01, 0.01])
    weights = reference_runs.own_napkin(lesson.model, Machine("here", 1 << 30, 1.0, {"float32": 1e12}), 6)
    bandwidth = (weights.weight_bytes + weights.kv_bytes) / 0.001
    machine = Machine("here", 1 << 30, bandwidth, {"float32": 1e12})
    return reference_runs.stream_beside(lesson.model, machine, reading)


def test_a_reference_is_what_its_file_says_and_says_whose_it_is() -> None:
    run = reference_runs.reference("generate-llama-3.1-8b-h200")
    data = stored("generate-llama-3.1-8b-h200")
    assert {row.value for row in run.rows} == {
        data["result"]["rows"][0][name] for name in ("tokens_per_s", "decode_tokens_per_s")
    }
    for part in ("llama-3.1-8b", "bfloat16", "NVIDIA H200", "torch 2.11.0+cu130", data["measured_at"][:10]):
        assert part in run.label
    with pytest.raises(LabError, match="the nearest of them: generate-llama-3.1-8b-h200"):
        reference_runs.reference("generate-llama-3.1-8b-h20")


def test_a_stream_stands_beside_two_references(streamed: reference_runs.DecodeBeside) -> None:
    own, *others = streamed.rows()
    assert (own["whose"], own["model"], own["device"]) == (
        "yours, this run",
        "tiny",
        "a processor, 2 threads",
    )
    assert own["tok/s, one user"] == pytest.approx(100)
    assert own["of what its memory allows (%)"] == pytest.approx(10)
    for row, name in zip(others, reference_runs.DECODE, strict=True):
        result = stored(name)["result"]
        assert row["whose"] == "reference"
        assert row["tok/s, one user"] == result["rows"][0]["decode_tokens_per_s"]
        assert row["of what its memory allows (%)"] == pytest.approx(100 * result["rows"][0]["ceiling_share"])
    finding = streamed.speed_finding()
    assert finding.startswith("Yours: tiny in float32, ")
    assert "100 tok/s, 10 % of what this machine's memory allows" in finding
    for row in others:
        rate, share = row["tok/s, one user"], row["of what its memory allows (%)"]
        assert f"{significant(rate)} tok/s, {significant(share)} %" in finding
    assert "hold the shares against each other" in finding


def test_own_steps_are_kept_with_the_results_and_can_be_compared(
    streamed: reference_runs.DecodeBeside, lesson: Session
) -> None:
    """`labcore compare` sets a learner's lesson and a reference of another model side by side, by share."""
    runs = [read(lesson.results.save()), *(one.run for one in streamed.others)]
    (found,) = (one for one in compare(runs).measurements if one.what == reference_runs.STEPS)
    assert found.unit == "% of what the machine allows"
    assert [point.model for point in found.points] == ["tiny", "llama-3.2-1b", "llama-3.1-8b"]
    assert found.points[0].value == pytest.approx(10)


def test_a_step_s_share_is_its_own_minute_s(lesson: Session) -> None:
    step = Row("decode", 1, 64, 0.02, 0, 0, 0, 0, 0, 0, 0, 0, bandwidth=1e10, flops=1e9, mbu=0.8, mfu=0.1)
    rows = [replace(step, phase="prefill"), replace(step, batch=8), step]
    found = PredictResult("shape:small", "float32", 2, 7, 0, 0, rows)
    beside = reference_runs.step_beside(replace(lesson.model, name="shape:small"), found)
    assert (beside.own.row.value, beside.own.share) == (50, 0.8)
    assert beside.own.step_bytes == pytest.approx(0.8 * 1e10 * 0.02)
    finding = beside.share_finding()
    assert "reached 80 % of the bandwidth measured here (small in float32)" in finding
    shares = [100 * stored(name)["result"]["rows"][0]["ceiling_share"] for name in reference_runs.DECODE]
    assert f"llama-3.2-1b in bfloat16 reached {significant(shares[0])} %" in finding
    made = figures.shares_figure(beside)
    assert [round(x) for trace in made.data for x in trace.x] == [80, *map(round, shares)]
    assert made.data[1].name == f"reference: {reference_runs.told(beside.others[0].run)}"
    assert made.data[1].name.endswith(stored(reference_runs.DECODE[0])["measured_at"][:10])
    assert made.data[0].marker.pattern.shape != made.data[1].marker.pattern.shape
    rows = [replace(row, mbu=1.4, trusted=False) for row in rows]
    doubted = reference_runs.step_beside(lesson.model, replace(found, rows=rows))
    assert doubted.own.said.endswith("140 % (!)")
    assert "cannot be trusted. On a CPU a small model may lie in a cache" in doubted.share_finding()
    assert "trusted" not in finding


def test_gains_of_narrower_weights_are_over_the_same_model_there(lesson: Session) -> None:
    full = Shrunk(FULL, 400, 0.0, 1.0, {1: 0.4, 8: 0.8, 32: 1.0})
    half = Shrunk("int8:granularity=channel", 100, 0.01, 0.5, {1: 0.1, 8: 0.4, 32: 1.0})
    ways = ThreeWays("shape:small", 64, (full, half))
    beside = reference_gains.weights_beside(lesson.model, ways)
    (own,) = beside.own
    assert own.gains == pytest.approx(
        {"smaller": 4, "decode, batch 1": 4, "decode, batch 8": 2, "prefill": 2}
    )
    rows = {(row["engine"], row["batch"]): row for row in stored(reference_gains.QUANT)["result"]["rows"]}
    plain, int8 = (rows[f"labcore {name}", 1] for name in ("bfloat16", "int8:granularity=channel"))
    eight, four = beside.others
    gain = int8["decode_tokens_per_s"] / plain["decode_tokens_per_s"]
    assert eight.gains["decode, batch 1"] == pytest.approx(gain)
    assert eight.gains["smaller"] == plain["weight_bytes"] / int8["weight_bytes"]
    assert four.bits == "4 bits"
    finding = beside.finding()
    assert "Yours, small in float32. 8 bits: 4× smaller, decode at batch 1 4× as fast" in finding
    assert "Reference, llama-3.2-1b in bfloat16 (NVIDIA H200" in finding
    assert f"8 bits: 2× smaller, decode at batch 1 {significant(gain)}× as fast" in finding
    fewer, alone, together = (
        significant(four.gains[name]) for name in ("smaller", "decode, batch 1", "decode, batch 8")
    )
    assert finding.endswith(
        f"There 4 bits are {fewer}× fewer bytes, and decode {alone}× as fast at batch 1, "
        f"{together}× at batch 8."
    )
    slow = replace(four, gains=four.gains | {"decode, batch 1": 0.7, "decode, batch 8": 0.9})
    finding = replace(beside, others=(eight, slow)).finding()
    assert finding.endswith("There narrower weights save memory and cost time.")
    made = figures.weight_gains_figure(beside)
    assert [trace.name.partition(" (")[0] for trace in made.data] == [
        "8 bits, small in float32", "8 bits, llama-3.2-1b in bfloat16", "4 bits, llama-3.2-1b in bfloat16",
    ]  # fmt: skip
    assert len({trace.marker.pattern.shape for trace in made.data}) == 3
    kept = lesson.results.measurements[
        "quant: small, 8 bits, decode, batch 8, labcore int8:granularity=channel"
    ]
    assert (kept["value"], kept["model"]) == (20, "small")


def test_policies_are_compared_by_their_gains(lesson: Session) -> None:
    lengths = compare_lengths(lesson.model, n=4, places=2, prompt=4, output=4, repeats=1)
    beside = reference_gains.served_beside(lesson.model, lengths)
    exponential, constant, reference = beside.rows()
    assert [row["answers"] for row in (exponential, constant)] == [
        "of exponential lengths", "of constant lengths",
    ]  # fmt: skip
    assert exponential["continuous (tok/s)"] == (
        lengths.runs["exponential"]["continuous"].summary.output_tokens_per_s
    )
    result = stored(reference_gains.SERVING)["result"]
    assert reference["continuous (tok/s)"] == result["rows"][0]["tokens_per_s"]
    assert reference["gain"] == "2.52×"
    assert (reference["answers"], reference["at once"]) == ("of 100 to 1,024 tokens", 256)
    assert "hold the gains against each other" in beside.finding()
