"""`labcore bench quant`: its bookkeeping and its sentences; never its timings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from labcore.bench import llama_cpp
from labcore.bench.cli import app
from labcore.bench.quant import Row, bench_quant, targets
from labcore.config import ModelConfig
from labcore.errors import ConfigError, LabError
from labcore.model import Model, Transformer, save_checkpoint

CONFIG = ModelConfig(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    intermediate_size=96, vocab_size=64, max_position_embeddings=128, tie_word_embeddings=True,
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = Model("tiny", CONFIG, Transformer(CONFIG).requires_grad_(False), None)
    return save_checkpoint(model, CONFIG, tmp_path / "tiny", dtype="float32")


def test_the_command_measures_every_contestant_and_keeps_it(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    words = ["quant", "--model", str(folder), "--recipe", "int8", "--recipe", "int4:group=32", "--batch", "3",
             "--prompt-tokens", "40", "--new-tokens", "2", "--repeats", "2", "--against", "transformers",
             "--out", str(out), "--device", "cpu"]  # fmt: skip
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    data = json.loads(out.read_text())
    assert data["versions"]["transformers"]
    rows = data["result"]["rows"]
    assert [(row["engine"].split(":")[0], row["batch"]) for row in rows] == [
        ("labcore float32", 1), ("labcore float32", 3), ("labcore int8", 1), ("labcore int8", 3),
        ("labcore int4", 1), ("labcore int4", 3), ("transformers float32", 1),
    ]  # fmt: skip
    by_name = {(row["engine"].split(":")[0], row["batch"]): row for row in rows}
    assert by_name["labcore int4", 1]["weight_bytes"] < by_name["labcore int8", 1]["weight_bytes"]
    for row in rows:
        share = row["decode_tokens_per_s"] / row["ceiling_tokens_per_s"]
        assert row["ceiling_share"] == pytest.approx(share)
        full = by_name["labcore float32", row["batch"]]["decode_tokens_per_s"]
        assert row["times_full_precision"] == pytest.approx(row["decode_tokens_per_s"] / full)
    assert len(data["result"]["samples"]["transformers float32"]) == 2
    assert "int8 decode over ours in full precision" in done.output


def test_llama_cpp_runs_the_same_weights(folder: Path) -> None:
    pytest.importorskip("llama_cpp")
    found = bench_quant(
        str(folder),
        ["int8"],
        ["llama.cpp"],
        prompt_tokens=40,
        new_tokens=2,
        batches=(1,),
        repeats=1,
        device="cpu",
    )
    names = {row["engine"] for row in found["rows"]}
    assert {"llama.cpp F32", "llama.cpp Q8_0", "llama.cpp Q4_0"} < names
    assert len(found["targets"]) == 3


def row(engine: str, decode: float, prefill: float, times: float = 1.0) -> Row:
    return Row(engine, 1, 10, decode, 0.0, prefill, 100.0, decode / 100, times)


def test_targets_compare_what_belongs_together() -> None:
    rows = [
        row("labcore float32", 40, 600),
        row("labcore int8:granularity=channel", 120, 1500, 3.0),
        row("labcore int4:group=32", 150, 900, 3.75),
        row("llama.cpp F32", 45, 500),
        row("llama.cpp Q8_0", 100, 700),
        row("llama.cpp Q4_0", 160, 750),
    ]
    found = {target.what: target for target in targets(rows, "labcore float32")}
    assert [round(target.measured, 3) for target in found.values()] == [3.0, 1.2, 0.938, 2.0]
    assert [target.met for target in found.values()] == [True, True, False, True]
    assert len(targets(rows[:3], "labcore float32")) == 1


def test_peers_and_recipes_that_do_not_exist(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LabError, match=r"no peer 'vllm' here; choose from transformers, llama.cpp"):
        bench_quant(str(folder), [], ["vllm"])
    with pytest.raises(ConfigError, match="no recipe 'int5'"):
        bench_quant(str(folder), ["int5"], prompt_tokens=40)
    monkeypatch.setitem(__import__("sys").modules, "llama_cpp", None)
    with pytest.raises(LabError, match="pip install llama-cpp-python"):
        llama_cpp.library()
