"""Lesson 5: knobs, regimes, the puzzle, fusion, ways to run a step, ranks.

Small sizes; no timing is judged.
"""

from __future__ import annotations

import pytest
import torch

import labcore
from labcore.catalog import architecture, gpu
from labcore.lab import fusion, puzzle, ranks, regimes, roofline_rows, steps
from labcore.lab.figures import regimes as figures
from labcore.lab.widgets import regimes as widgets
from labcore.model import Model
from labcore.parallel import AllReduceTime, StepOnRanks
from labcore.perf.costs import step_costs
from labcore.perf.profile import KINDS, Profile, profile
from labcore.perf.profiling.regime import Regime
from labcore.perf.roofline import Roofs

ROOFS = Roofs(
    device="cpu", device_name="Abacus 1", threads=1, torch_version="2", matmul_flops={"float32": 1e11},
    matmul_shapes={"float32": (1, 1, 1)}, read_bandwidth=1e10, copy_bandwidth=1e10, launch_overhead_s=2e-6,
    working_set_bytes=1 << 28, measured_at="2026-01-01T00:00:00+00:00", seconds=1.0,
    bandwidth_by_size=((1 << 18, 1e11, 1e11), (1 << 28, 1e10, 1e10)),
)  # fmt: skip


@pytest.fixture(scope="module")
def story() -> Model:
    return labcore.load("story", device="cpu", dtype="float32")


def test_each_knob_passes_through_its_regimes() -> None:
    rows = regimes.turn_rows(ROOFS, rows=(1, 512), width=512)
    assert [point.regime for point in rows.points] == ["bandwidth", "compute"]
    numbers = regimes.turn_numbers(ROOFS, numbers=(4, 1 << 22))
    assert [point.regime for point in numbers.points] == ["overhead", "bandwidth"]
    pieces = regimes.turn_pieces(ROOFS, pieces=(1, 2048), numbers=1 << 18)
    assert [point.regime for point in pieces.points] == ["bandwidth", "overhead"]
    assert pieces.points[1].terms["overhead"] == pytest.approx(2048 * 2e-6, rel=0.01) or (
        pieces.points[1].terms["overhead"] == pieces.points[1].timing.median_s  # capped at the step
    )
    assert "bandwidth → compute" in rows.finding()
    assert rows.rows()[1]["rows"] == 512


def test_a_knobs_terms_are_its_works_over_the_roofs() -> None:
    point = regimes.turn_rows(ROOFS, rows=(8,), width=256).points[0]
    assert point.terms["compute"] == pytest.approx(2 * 8 * 256 * 256 / 1e11)
    moved = 4 * (256 * 256 + 2 * 8 * 256)
    assert point.terms["bandwidth"] == pytest.approx(moved / ROOFS.read_bandwidth_at(moved))


def test_the_knob_explorer_marks_its_position() -> None:
    sweeps = [regimes.turn_rows(ROOFS, rows=(1, 64), width=64), regimes.turn_pieces(ROOFS, (1, 2, 4), 64)]
    explorer = widgets.make_knobs(sweeps)
    assert set(explorer.settings) == {"knob", "position"}
    view = widgets.knob_view(sweeps[0], position=2)  # past its end: the last
    ring = view.figure.data[-1]
    assert list(ring.x) == [64]
    assert view.finding.startswith("At 64 rows it takes")


def _profiles() -> list[Profile]:
    x = torch.randn(64, 64)
    return [profile(lambda: torch.mm(x, x).add_(1), label="a product", roofs=ROOFS)]


def test_bars_add_up_to_the_step_and_the_timeline_holds_every_operation() -> None:
    (one,) = _profiles()
    bars = figures.kinds_figure([one])
    assert sum(bar.x[0] for bar in bars.data) == pytest.approx(100, abs=0.01)
    timeline = figures.timeline_figure(one)
    assert sum(len(trace.x) for trace in timeline.data) == len(one.events)
    (row,) = regimes.kind_rows([one])
    assert row["step"] == "a product"
    assert regimes.recognised([one]).startswith("A product: ")
    assert set(figures.KIND_LOOKS) == set(KINDS)
    assert widgets.timeline_view(one).finding.startswith(f"This step waits for {one.regime.name}. ")


def test_a_step_can_be_repeated_and_the_readable_twin_computes_the_same(story: Model) -> None:
    plain = steps.readable(story)
    assert plain.transformer.fast is False
    assert story.transformer.fast is True
    assert plain.transformer.embed_tokens.weight is story.transformer.embed_tokens.weight
    one, two = (labcore.generate(m, "Once upon", max_new_tokens=4).tokens for m in (story, plain))
    assert one == two
    for kind in ("contiguous", "none"):
        run = steps.step_fn(story, held=5, new=1, kind=kind)
        run(), run()


def test_profiles_of_a_models_steps(story: Model) -> None:
    found = steps.profile_steps(story, ROOFS, prompt=8, held=8)
    labels = [one.label for one in found]
    assert labels[:2] == ["prefill of 8", "decode, operator by operator"]
    assert all(one.by_kind["matmul"] > 0 and one.by_kind["attention"] > 0 for one in found)
    assert found[1].flops == step_costs(story.config, 1, 9, dtype="float32").flops


def test_the_puzzle_is_measured_on_a_model_and_its_twin(story: Model) -> None:
    found = puzzle.solve_puzzle(story, lengths=(4, 8), repeats=5)
    assert [point.length for point in found.points] == [4, 8]
    twin = puzzle.thin_twin(story)
    assert twin.config.num_hidden_layers == story.config.num_hidden_layers
    assert twin.num_parameters < story.num_parameters / 20
    assert found.operators["cache on"] >= found.operators["cache off"] > 50
    assert "the cache saves" in found.rows()[0]
    assert len(figures.puzzle_figure(found).data) == 4


def test_the_published_table_is_divided_by_operators() -> None:
    config = architecture("qwen3-0.6b")
    peaks = puzzle.puzzle_peaks(config, gpu("a100-80gb-sxm"))
    assert peaks["cache on"] > 50 * puzzle.PUZZLE["cache on"]  # the peaks allow far more than was reached
    for row in puzzle.published_rows(config, peaks):
        assert row["step (ms)"] * 1e3 / row["operators, here"] == pytest.approx(row["µs an operator"])
        assert row["operators, here"] > 20 * config.num_hidden_layers


def test_fusion_computes_the_same_and_counts_its_passes() -> None:
    found = fusion.compare_fusion(torch.device("cpu"), rows=32, width=512)
    ways = [run.way for run in found.runs]
    assert ways[0] == "three operators"
    assert found.runs[0].passes == 8
    assert all(run.passes == 3 for run in found.runs[1:])
    assert found.speedup("three operators") == 1
    names = [row["additions as"] for row in fusion.many_or_one(torch.device("cpu"), 1 << 12)]
    assert names == ["one operation", "a thousand"]


def test_without_a_compiler_fusion_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(fn: object) -> object:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", broken)
    found = fusion.compare_fusion(torch.device("cpu"), rows=32, width=512)
    row = next(row for row in found.rows() if row["way"] == "torch.compile")
    assert row["measured (µs)"] is None
    assert "no compiler here" in row["faster than operators"]


def _talk() -> ranks.Talk:
    reduces = tuple(AllReduceTime(size, 2, 1e-4 + size / 1e9, 0.0) for size in (1024, 1 << 20, 1 << 24))
    made = [
        StepOnRanks(n, 1, 64, new, step_s, 0.0, 0.1 * step_s * (n - 1), 17, 1000)
        for new, times in ((1, (0.03, 0.04)), (64, (0.3, 0.2)))
        for n, step_s in zip((1, 2), times, strict=True)
    ]
    terms = {"compute": 0.0, "bandwidth": 0.0, "communication": 1.0, "overhead": 0.0}
    seen = Profile(
        label="x", device="cpu", wall_s=1.0, spread_s=0.0, traced_s=1.0, by_kind=dict.fromkeys(KINDS, 0.0),
        operations=1, host_s=0.0, device_s=0.0, flops=0, bytes=0, top=(), events=(),
        regime=Regime("communication", "communication: …", terms),
    )  # fmt: skip
    return ranks.Talk(reduces, tuple(made), seen, ranks.SHAPE)


def test_talking_has_a_latency_and_a_bandwidth() -> None:
    talk = _talk()
    assert talk.speedup("decode") == pytest.approx(0.75)
    assert talk.speedup("prefill") == pytest.approx(1.5)
    assert talk.turn() == pytest.approx(talk.latency_s * talk.bandwidth)
    assert "decode: 0.75× as fast on 2 ranks, 10% of the step spent talking" in talk.step_finding()
    figure = figures.talk_figure(talk)
    assert list(figure.data[-1].y) == pytest.approx([one.seconds * 1e6 for one in talk.reduces])
    assert [row["ranks"] for row in talk.step_rows()] == [1, 2, 1, 2]


def test_golden_values_of_a_split_model() -> None:
    rows = ranks.split_rows({"llama": architecture("llama-3-70b")})
    assert [row["KV heads a rank"] for row in rows] == [8, 4, 2, 1]
    assert [row["cache a token and rank (B)"] for row in rows] == [327_680, 163_840, 81_920, 40_960]
    assert [row["all-reduces a step"] for row in rows] == [0, 160, 160, 160]
    assert rows[1]["sent by a rank (B)"] == 160 * 8192 * 2  # fp16, ring of two: each sum once


def test_golden_values_of_the_roofs_on_paper() -> None:
    facts = {row["fact"].strip(): row["value"] for row in roofline_rows.roof_facts()}
    assert list(facts.values()) == [0.25, 30.0, 24, 2.08, 50]
    ridges = {row["device"]: row["ridge (FLOP/byte)"] for row in roofline_rows.gpu_rows()}
    assert ridges["NVIDIA A10"] == "208.3"
    assert ridges["NVIDIA A100 80 GB SXM"] == "153.0"
    floors = {row["device"]: row["reads 14 GB in (ms)"] for row in roofline_rows.gpu_rows()}
    assert floors["NVIDIA H200 SXM"] == 2.92


def test_ways_to_run_a_step_give_the_same_tokens(story: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def ready(model: Model, step: str, context: int) -> object:
        asked.append(step)
        return type("Ready", (), {"seconds": 1.0})()

    real = steps.generate
    monkeypatch.setattr(steps, "warm_up", ready)
    monkeypatch.setattr(steps, "generate", lambda *a, step, **k: real(*a, **k))  # nothing is compiled here
    runs = steps.compare_ways(story, held=6, new=4, repeats=2)
    assert asked[:2] == ["eager", "compiled"]
    assert all(run.same for run in runs)
    assert "after a warm-up of 1 s" in steps.way_finding(runs)
    assert steps.way_rows(runs)[0]["faster"] == "1×"
