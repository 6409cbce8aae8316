"""Sweeps: what is fed and counted, the roofs' bracket, and the sentences that state the findings."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from labcore.errors import LessonError
from labcore.generation import decode_step, prefill
from labcore.lab import phases, sweeps
from labcore.lab.exercises.loops import tiny_model
from labcore.lab.figures import sweeps as figures
from labcore.lab.sweeps import Point, Roof, Sweep, Work
from labcore.model import Model
from labcore.perf.costs import step_costs
from labcore.perf.roofline import Roofs
from labcore.perf.timing import Timing


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


@pytest.fixture(scope="module")
def roofs() -> Roofs:
    """Round numbers, so that expectations can be computed by hand."""
    return Roofs(
        device="cpu", device_name="test machine", threads=1, torch_version="2",
        matmul_flops={"float32": 1e11}, matmul_shapes={"float32": (1, 1, 1)}, read_bandwidth=1e10,
        copy_bandwidth=1e10, launch_overhead_s=1e-6, working_set_bytes=1, measured_at="now", seconds=0.0,
    )  # fmt: skip


def timing(median: float, *others: float) -> Timing:
    return Timing(median_s=median, spread_s=0.0, samples=(median, *others) if others else (median,) * 5)


def sweep(phase: Any, **seconds: float) -> Sweep:
    """Points at lengths given as n16=0.01, …; work is 1e9 FLOP and 1e8 bytes each."""
    roof = Roof(1e11, 1e10)
    points = (Point(int(n[1:]), timing(s), Work(1e9, 1e8), roof) for n, s in seconds.items())
    return Sweep(phase, "tiny", "test machine", tuple(points))


def test_the_bracket_goes_from_full_overlap_to_none() -> None:
    assert Roof(1e11, 1e10).bracket(Work(2e11, 1e10)) == (2.0, 3.0)
    assert Roof(1e11, 1e10).bracket(Work(1e11, 3e10)) == (3.0, 4.0)


def test_a_point_states_its_share_of_both_roofs() -> None:
    point = sweep("prefill", n16=0.1).shortest
    assert point.flops_share == pytest.approx(1e9 / 0.1 / 1e11)
    assert point.bandwidth_share == pytest.approx(1e8 / 0.1 / 1e10)
    assert point.row("prompt")["roofs allow (ms)"] == "10 – 20"


def test_findings_state_the_measured_ratio() -> None:
    read = sweep("prefill", n16=0.01, n256=0.04)
    assert read.ratio == pytest.approx(4)
    assert "16 → 256 tokens: 16× the tokens in 4× the time (10 ms → 40 ms)" in read.finding()
    written = sweep("decode", n16=0.032, n256=0.768)
    assert "2 ms on average over the first 16 and 3 ms over all 256" in written.finding()
    both = sweeps.phases_finding(read, written)
    assert "256 tokens: read in 40 ms, written in 768 ms, 19.2× the time for 1× the FLOPs" in both
    rows = sweeps.phases_rows(read, written)
    assert [row["phase"] for row in rows] == ["prefill, 256 tokens", "decode, 256 tokens"]
    assert rows[0]["of the matmul roof (%)"] == pytest.approx(read.longest.flops_share * 100)


def test_both_phases_are_compared_at_a_length_that_both_have() -> None:
    read = sweep("prefill", n16=0.01, n64=0.02, n256=0.04)
    assert sweeps.phases_finding(read, sweep("decode", n16=0.1, n64=0.2)).startswith("64 tokens")


def test_prefill_sweep_costs_are_those_of_the_steps(model: Model, roofs: Roofs) -> None:
    found = sweeps.sweep_prefill(model, [8, 4], roofs=roofs)
    assert [point.length for point in found.points] == [4, 8]
    assert found.longest.work == Work.of(step_costs(model.config, 1, 8, 8, dtype="float32"))
    assert len(found.longest.timing.samples) == 5
    assert len(found.rows()) == 2


def test_decode_sweep_feeds_one_token_a_step(model: Model, roofs: Roofs) -> None:
    fed: list[int] = []
    hook = model.transformer.register_forward_pre_hook(lambda _, args: fed.append(args[0].shape[1]))
    found = sweeps.sweep_decode(model, [3, 6], prompt_length=5, roofs=roofs)
    hook.remove()
    warm = [5, 1, 1, 1]
    assert fed == warm + 5 * ([5] + [1] * 6)
    steps = [step_costs(model.config, 1, context, dtype="float32") for context in range(6, 12)]
    assert found.longest.work == Work.of(*steps)
    for early, late in zip(found.shortest.timing.samples, found.longest.timing.samples, strict=True):
        assert 0 < early < late


@pytest.mark.parametrize(("lengths", "repeats"), [([0], 5), ([65], 5), ([], 5), ([4], 4)])
def test_impossible_sweeps_are_refused(model: Model, roofs: Roofs, lengths: list[int], repeats: int) -> None:
    with pytest.raises(LessonError, match="from 1 to 64|at least 5"):
        sweeps.sweep_prefill(model, lengths, repeats=repeats, roofs=roofs)


def test_positions_are_counted_from_traces_and_agree_with_the_formulas(model: Model) -> None:
    small, larger, too_long = phases.count_positions(model, [(8, 3), (10, 50), (512, 512)])
    assert (small["forward passes"], small["cache off: counted"], small["cache on: counted"]) == (3, 27, 10)
    assert (larger["cache off: counted"], larger["cache on: counted"]) == (1725, 59)
    assert (too_long["cache off: counted"], too_long["cache on: counted"]) == (None, None)
    assert (too_long["cache off: formula"], too_long["cache on: formula"]) == (392_960, 1_023)
    for row in (small, larger):
        assert row["cache off: counted"] == row["cache off: formula"]
        assert row["cache on: counted"] == row["cache on: formula"]


def test_step_rows_state_shapes_and_cache(model: Model) -> None:
    rows = phases.step_rows(phases.traced(model, 8, 3))
    assert [row["input shape"] for row in rows] == ["(1, 8)", "(1, 1)", "(1, 1)"]
    assert [row["first position"] for row in rows] == [0, 8, 9]
    assert [row["cache holds after"] for row in rows] == [8, 9, 10]
    uncached = phases.step_rows(phases.traced(model, 8, 3, "none"))
    assert [row["input shape"] for row in uncached] == ["(1, 8)", "(1, 9)", "(1, 10)"]
    assert {row["cache holds after"] for row in uncached} == {0}


def test_cache_runs_write_the_same_tokens_and_count_the_work(model: Model) -> None:
    runs = phases.compare_caches(model, prompt_length=6, new_tokens=5)
    on, off = runs.traces["contiguous"], runs.traces["none"]
    assert [step.token for step in on.steps] == [step.token for step in off.steps]
    assert runs.positions("contiguous") == [6, 1, 1, 1, 1]
    assert runs.positions("none") == [6, 7, 8, 9, 10]
    assert runs.work_ratio == pytest.approx(sum(s.flops for s in off.steps) / sum(s.flops for s in on.steps))
    assert all(len(step.samples) == 5 for times in runs.times.values() for step in times)
    assert "40 positions went through the network instead of 10" in runs.finding()
    with pytest.raises(LessonError, match="at most 64 tokens"):
        phases.compare_caches(model, prompt_length=60, new_tokens=5)


def test_three_ways_to_the_same_token_really_are(model: Model, roofs: Roofs) -> None:
    whole, off, on = phases.same_work(model, 12, roofs=roofs)
    assert [way.shape for way in (whole, off, on)] == [(1, 12), (1, 12), (1, 1)]
    assert whole.point.work.flops == off.point.work.flops > 10 * on.point.work.flops
    assert "input (1, 12) against (1, 12), 1× its FLOPs" in phases.same_work_finding([whole, off, on])
    known = sweeps.random_tokens(model, 12)
    logits = []
    for kind, held in (("contiguous", 0), ("none", 0), ("contiguous", 11)):
        cache = sweeps.new_cache(model, kind, 12)
        if held:
            prefill(model, known[:, :held], cache)
        logits.append(decode_step(model, known, cache))
    assert torch.allclose(logits[0], logits[1], atol=1e-5)
    assert torch.allclose(logits[0], logits[2], atol=1e-4)


def test_cost_rows_of_a_published_shape() -> None:
    from labcore import catalog

    read, write = phases.cost_rows(catalog.architecture("llama-2-7b"), 512)
    assert (read["input shape"], write["input shape"]) == ("(1, 512)", "(1, 1)")
    assert read["FLOP per byte"] > 100 * write["FLOP per byte"]
    assert 0.9 < write["FLOP per byte"] < 1.1


def test_sweep_figure_shows_band_measurement_and_guess() -> None:
    figure = figures.sweep_figure(sweep("prefill", n16=0.01, n256=0.04), predicted=8)
    traces = {trace.name: trace for trace in figure.data}
    assert list(traces["measured, median and spread"].y) == pytest.approx([10, 40])
    assert list(traces["your prediction"].y) == pytest.approx([80])
    assert list(traces["what the roofs allow"].y) == pytest.approx([20, 20, 10, 10])
    assert figure.layout.xaxis.title.text == "prompt length (tokens)"
    assert figure.layout.yaxis.title.text == "time (ms)"
    unguessed = figures.sweep_figure(sweep("prefill", n16=0.01, n256=0.04))
    assert "your prediction" not in {trace.name for trace in unguessed.data}


def test_error_bars_reach_the_quartiles_and_no_further() -> None:
    bars = figures.quartiles([Timing(2.0, 2.0, (1.0, 1.0, 2.0, 3.0, 9.0))])
    assert bars["array"] == pytest.approx([1000])
    assert bars["arrayminus"] == pytest.approx([1000])
    assert not bars["symmetric"]


def test_shares_are_drawn_in_percent_with_their_values() -> None:
    figure = figures.phase_shares(sweep("prefill", n16=0.1), sweep("decode", n16=0.1))
    matmul, bandwidth = figure.data
    assert list(matmul.y) == pytest.approx([10, 10])
    assert list(bandwidth.y) == pytest.approx([10, 10])
    assert matmul.marker.pattern.shape != bandwidth.marker.pattern.shape


def test_caches_and_same_work_are_drawn_from_the_runs(model: Model, roofs: Roofs) -> None:
    runs = phases.compare_caches(model, prompt_length=4, new_tokens=3)
    figure = figures.caches_figure(runs)
    assert [list(figure.data[i].y) for i in (0, 2)] == [[4, 5, 6], [4, 1, 1]]
    ways = phases.same_work(model, 8, roofs=roofs)
    drawn = figures.same_work_figure(ways).data[0]
    assert list(drawn.y) == pytest.approx([way.point.seconds * 1e3 for way in ways])
    assert drawn.x[2].endswith("input (1, 1)")
