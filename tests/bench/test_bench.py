"""The benchmark's bookkeeping; never its timings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from labcore.bench import record
from labcore.bench.cli import app
from labcore.bench.generate import bench_generate
from labcore.bench.interleave import Samples, interleave
from labcore.bench.peers import Run, peer
from labcore.config import ModelConfig
from labcore.errors import LabError, OutOfMemory
from labcore.model import Model, Transformer, save_checkpoint
from labcore.perf import costs
from labcore.perf.roof_measuring import reading


@pytest.fixture(scope="module")
def model() -> Model:
    config = ModelConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=48, vocab_size=64, max_position_embeddings=128, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    return Model("tiny", config, Transformer(config).requires_grad_(False), None)


def test_runs_take_turns() -> None:
    order: list[str] = []
    contestants = {name: (lambda name=name: order.append(name) or len(order)) for name in "abc"}
    samples = interleave(contestants, repeats=3, warmup=1)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert samples["b"].results == [5, 7, 12]


def test_median_and_spread() -> None:
    samples = Samples([5.0, 1.0, 2.0, 3.0, 4.0])
    assert (samples.median(float), samples.spread(float)) == (3.0, 2.0)
    assert Samples([7.0]).spread(float) == 0.0


def test_run_splits_first_token_from_the_rest() -> None:
    run = Run([[1, 2, 3], [4, 5, 6]], seconds=0.5, ttft_s=0.1)
    assert (run.tpot_s, run.count) == (pytest.approx(0.2), 6)
    assert Run([[1, 2, 3]], seconds=0.5).tpot_s is None


def test_transformers_is_given_the_same_weights(model: Model) -> None:
    result = bench_generate(model, ["transformers"], prompt_tokens=8, new_tokens=12, repeats=2)
    mine, theirs = result.rows
    assert (mine.engine, theirs.engine, theirs.agreement) == ("labcore", "transformers", 1.0)
    assert len(result.samples_s["transformers"]) == 2
    assert theirs.slower_than_ours == pytest.approx(theirs.seconds / mine.seconds)
    mean_context, embedding_row = 8 + 6, model.config.hidden_size * 4
    kv = costs.kv_bytes_per_token(model.config, "float32") * mean_context
    assert result.bytes_per_step == model.weight_bytes + embedding_row + kv
    assert mine.ceiling_share == pytest.approx(mine.decode_tokens_per_s / result.ceiling_tokens_per_s)


def test_a_batch_counts_all_its_tokens(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three prompts that differ; the ceiling is what memory was measured to give in between."""
    monkeypatch.setattr("labcore.bench.generate.reading", lambda *_: lambda: 1e9)
    peers = ["transformers", "transformers-static"]
    result = bench_generate(model, peers, batch=3, prompt_tokens=8, new_tokens=12, repeats=2)
    assert [row.engine for row in result.rows] == ["labcore", *peers]
    assert [row.agreement for row in result.rows] == [1.0] * 3
    kv = costs.kv_bytes_per_token(model.config, "float32") * (8 + 6)
    assert result.bytes_per_step == model.weight_bytes + 3 * (model.config.hidden_size * 4 + kv)
    assert result.ceiling_tokens_per_s == pytest.approx(3 * 1e9 / result.bytes_per_step)
    for row in result.rows:
        assert row.tokens_per_s == pytest.approx(36 / row.seconds)


def test_memory_is_measured_whenever_it_is_asked() -> None:
    measure = reading(torch.device("cpu"), 1 << 20, "float32")
    assert all(1e8 < measure() < 1e13 for _ in range(2))
    with pytest.raises(OutOfMemory, match="needs as much memory"):
        reading(torch.device("cpu"), 1 << 50, "float32")


def test_unknown_peer(model: Model) -> None:
    with pytest.raises(LabError, match="no peer 'vllm'.*transformers"):
        peer("vllm", model, [[1]], 2)


def test_command_writes_a_complete_record(model: Model, tmp_path: Path) -> None:
    save_checkpoint(model.transformer, model.config, tmp_path / "model")
    out = tmp_path / "runs" / "generate.json"
    arguments = ["generate", "--model", str(tmp_path / "model"), "--repeats", "1", "--new-tokens", "4"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(out)])
    assert done.exit_code == 0, done.output
    data = json.loads(out.read_text())
    assert data["machine"]["threads"] == torch.get_num_threads()
    assert {"benchmark", "measured_at", "command", "versions", "result"} <= set(data)
    assert data["result"]["rows"][0]["engine"] == "labcore"


def test_a_record_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "record.json"
    record.write(path, {"a": 1})
    record.write(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    assert list(path.parent.iterdir()) == [path]
