"""The cache benchmarks' bookkeeping; never their timings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import labcore
from labcore.bench.cache import SPECS, bench_cache, shortened
from labcore.bench.cli import app
from labcore.cache import KINDS, CacheSpec
from labcore.config import ModelConfig
from labcore.errors import ConfigError
from labcore.model import Model, Transformer
from labcore.perf import costs


@pytest.fixture(scope="module")
def model() -> Model:
    config = ModelConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=48, vocab_size=64, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    return Model("tiny", config, Transformer(config).requires_grad_(False), None)


def test_every_kind_that_keeps_is_measured() -> None:
    assert {CacheSpec.parse(spec).kind for spec in SPECS} == set(KINDS) - {"none", "contiguous"}


def test_rows_say_what_is_allocated(model: Model) -> None:
    result = bench_cache(model, ["int8", "sliding_window:window=4"], contexts=[12], batches=[2], repeats=2)
    plain, int8, window = result.rows
    formula = costs.kv_bytes_per_token(model.config, "float32")
    assert result.formula_bytes_per_token == formula == plain.bytes_per_token
    assert int8.bytes_per_token == formula * (8 + 32 / 8) / 32
    assert window.bytes_per_token < formula
    assert (plain.ratio, plain.cache) == (1.0, "contiguous")
    assert int8.ratio == pytest.approx(int8.seconds / int8.base_seconds)
    with pytest.raises(ConfigError, match="no cache kind 'int5'"):
        bench_cache(model, ["int5"], contexts=[12], batches=[1], repeats=1)


def test_a_shortened_model_is_the_first_layers(model: Model) -> None:
    short = shortened(model, 2, 500)
    assert (short.config.num_hidden_layers, short.config.max_position_embeddings) == (2, 500)
    tokens = [1, 2, 3]
    seen: list[torch.Tensor] = []
    hook = model.transformer.layers[1].register_forward_hook(lambda *args: seen.append(args[2]))
    labcore.logits(model, tokens)
    hook.remove()
    expected = model.transformer.lm_head(model.transformer.norm(seen[0])).float()
    torch.testing.assert_close(labcore.logits(short, tokens), expected, atol=1e-5, rtol=1e-5)


def test_both_commands_write_what_they_show(tmp_path: Path) -> None:
    path = tmp_path / "cache.json"
    arguments = (
        "cache --model story --layers 1 --kind int4 --context 20 --batch 1 --repeats 1 --device cpu --out"
    )
    done = CliRunner().invoke(app, [*arguments.split(), str(path)])
    assert done.exit_code == 0, done.output
    assert "int4" in done.output
    assert [row["cache"] for row in json.loads(path.read_text())["result"]["rows"]] == ["contiguous", "int4"]
    arguments = "cache-quality --kind contiguous --kind int2 --stories 2 --questions 4 --device cpu --out"
    done = CliRunner().invoke(app, [*arguments.split(), str(path)])
    assert done.exit_code == 0, done.output
    rows = json.loads(path.read_text())["result"]["rows"]
    assert [row["cache"] for row in rows] == ["contiguous", "int2"]
    assert rows[0]["difference"]["value"] == 0
