"""`labcore bench prefill`: its counts by hand, its rows and its sentences; never its timings."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from labcore.bench import prefill
from labcore.bench.cli import app
from labcore.bench.cli_prefill import table
from labcore.bench.prefill import bench_prefill, lengths_for, planned_bytes, prompt_flops
from labcore.errors import LabError
from labcore.perf.peaks import machine_from_roofs
from tests.bench.made_up import ROOFS, SMALL, folder_of, model_of, without_measuring


@pytest.fixture(autouse=True)
def _roofs(monkeypatch: pytest.MonkeyPatch) -> None:
    without_measuring(monkeypatch, "prefill")


def test_a_prompt_costs_its_products_and_the_scores_that_are_seen() -> None:
    linear = 2 * 6 * 2 * 7680
    head = 2 * 64 * 32  # of the last position
    scores = 4 * 2 * 4 * 8 * (6 * 7 // 2)
    assert prompt_flops(SMALL, 6, "float32") == linear + head + scores == 193_792
    assert prompt_flops(SMALL, 1) == 2 * 2 * 7680 + head + 4 * 2 * 4 * 8


def test_rows_are_held_against_the_roof_and_against_ours() -> None:
    result = bench_prefill(model_of(SMALL), ["transformers"], tokens=[6, 16], repeats=2)
    assert [(row.tokens, row.engine) for row in result.rows] == [
        (6, "labcore"), (6, "transformers"), (16, "labcore"), (16, "transformers"),
    ]  # fmt: skip
    assert result.matmul_flops == 1e11
    mine, theirs = result.rows[:2]
    for row in (mine, theirs):
        assert row.flops == 193_792
        assert row.ceiling_tokens_per_s == pytest.approx(6 * 1e11 / 193_792)
        assert row.ceiling_share == pytest.approx(193_792 / 1e11 / row.seconds)
        assert row.tokens_per_s == pytest.approx(6 / row.seconds)
    assert (mine.slower_than_ours, theirs.slower_than_ours) == (1.0, theirs.seconds / mine.seconds)
    assert {name: len(found) for name, found in result.samples_s.items()} == {
        "labcore, 6": 2, "transformers, 6": 2, "labcore, 16": 2, "transformers, 16": 2,
    }  # fmt: skip


def test_each_run_computes_the_whole_prompt_anew() -> None:
    model, seen = model_of(SMALL), []
    model.transformer.register_forward_pre_hook(
        lambda _, given: seen.append((tuple(given[0].shape), given[1].length))
    )
    bench_prefill(model, tokens=[9], repeats=2)
    assert seen == [((1, 9), 0)] * 3  # once to warm up


def test_memory_is_planned_for_the_same_prompt_and_measured_only_on_a_gpu() -> None:
    result = bench_prefill(model_of(SMALL), tokens=[16], repeats=1)
    weights = 4 * (2 * 7680 + 64 * 32 + 5 * 32)
    cache = 16 * 2 * 2 * 2 * 8 * 4
    activations = 16 * (3 * 32 + 2 * 8 + (8 + 3 * 6 + 4) * 8) * 4
    logits = 64 * 4
    assert result.rows[0].planned_bytes == weights + cache + activations + logits
    assert planned_bytes(SMALL, 16, "float32", machine_from_roofs(ROOFS, 0)) == result.rows[0].planned_bytes
    assert result.rows[0].peak_bytes is None


def test_a_run_on_a_gpu_is_charged_its_own_memory_and_one_engines_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(prefill, "synchronize", lambda _: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: calls.append("reset"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 700)  # two engines' weights
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 790)
    model: Any = SimpleNamespace(device=torch.device("cuda"), weight_bytes=300)
    run = prefill._timed(lambda: calls.append("computed") or 0, model)
    assert (run.peak_bytes, calls) == (390, ["reset", "computed"])


@pytest.mark.parametrize(
    ("context", "lengths"), [(64, (64,)), (128, (128,)), (600, (128, 512)), (2048, (128, 512, 2048))]
)
def test_usual_lengths_fit_the_context(context: int, lengths: tuple[int, ...]) -> None:
    assert lengths_for(model_of(SMALL.with_(max_position_embeddings=context))) == lengths


def test_what_cannot_be_measured_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(SMALL)
    with pytest.raises(LabError, match=r"no peer 'vllm' here; choose from transformers, llama.cpp"):
        bench_prefill(model, ["vllm"], tokens=[4])
    with pytest.raises(LabError, match="Prompts of 4, 257 tokens .* context holds 1 to 256"):
        bench_prefill(model, tokens=[4, 257])
    monkeypatch.setitem(__import__("sys").modules, "llama_cpp", None)
    with pytest.raises(LabError, match="pip install llama-cpp-python"):
        bench_prefill(model, ["llama.cpp"], tokens=[4])


def test_llama_cpp_reads_the_same_prompt() -> None:
    pytest.importorskip("llama_cpp")
    result = bench_prefill(model_of(SMALL), ["llama.cpp"], tokens=[6, 20], repeats=1)
    assert [row.engine for row in result.rows] == ["labcore", "llama.cpp F32"] * 2
    assert all(row.seconds > 0 for row in result.rows)


def test_the_command_writes_what_it_shows(tmp_path: Path) -> None:
    model, out = folder_of(SMALL, tmp_path / "tiny"), tmp_path / "out.json"
    words = ["prefill", "--model", str(model), "--tokens", "5", "--repeats", "1", "--device", "cpu"]
    done = CliRunner().invoke(app, [*words, "--out", str(out)])
    assert done.exit_code == 0, done.output
    data = json.loads(out.read_text())
    assert data["benchmark"] == "prefill"
    assert [(row["engine"], row["tokens"]) for row in data["result"]["rows"]] == [("labcore", 5)]
    assert "plan GB" not in done.output


def test_memory_is_shown_beside_its_plan_where_it_was_measured() -> None:
    row = bench_prefill(model_of(SMALL), tokens=[4], repeats=1).rows[0].to_dict()
    result = {"model": "m", "dtype": "bfloat16", "repeats": 1, "matmul_flops": 1e14}
    rows = [row | {"peak_bytes": 3_000_000_000, "planned_bytes": 2_500_000_000}, row]
    shown = table({"result": result | {"rows": rows}, "machine": {"name": "a GPU", "threads": 1}})
    cells = {str(column.header): list(column.cells) for column in shown.columns}
    assert cells["peak GB"] == ["3.00", "–"]
    assert cells["plan GB"][0] == "2.50"
