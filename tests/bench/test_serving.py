"""`labcore bench serving` on the embedded model: who serves what, and what is refused. No time is judged."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from typer.testing import CliRunner

import labcore
from labcore.bench import llama_server, serving
from labcore.bench.ceiling import Ceiling
from labcore.cli import app
from labcore.errors import LabError
from labcore.perf import Roofs
from labcore.serving import Static
from labcore.serving.events import RowEvent, StepEvent
from labcore.serving.workload import make_workload

EMPTY = {"device_name": "a GPU", "host_to_device": None}


def test_policies_serve_every_token_of_a_workload() -> None:
    model = labcore.load("story", dtype="float32")
    load = make_workload(5, prompt="uniform:4-9", output="exp:6:1-20", vocab_size=model.config.vocab_size)
    wanted = sum(one.output_tokens for one in load)
    for policy in ("continuous", Static(2)):
        found = serving.ours(model, load, policy, 2)
        assert found.output_tokens == wanted
        assert found.seconds > 0
        assert found.scheduling is not None
        assert 0 < found.scheduling < 1
    assert not model.transformer._forward_hooks


def test_rows_are_held_against_continuous_batching() -> None:
    result = serving.bench_serving("story", workloads=["constant"], requests=3, batch=2, repeats=1)
    continuous, static = result["rows"]
    assert (continuous["engine"], static["engine"]) == (serving.OURS, "labcore static, batches of 2")
    assert continuous["over"] == 1
    assert static["over"] == pytest.approx(static["seconds"] / continuous["seconds"])
    assert continuous["output_tokens"] == static["output_tokens"] == 3 * 96


def test_the_command_prints_and_keeps_its_rows(tmp_path: Path) -> None:
    out = tmp_path / "serving.json"
    settings = ["--model", "story", "--workload", "constant", "--requests", "2", "--batch", "2"]
    done = CliRunner().invoke(app, ["bench", "serving", *settings, "--repeats", "1", "--out", str(out)])
    assert done.exit_code == 0, done.output
    data = json.loads(out.read_text(encoding="utf-8"))
    assert data["benchmark"] == "serving"
    assert [row["workload"] for row in data["result"]["rows"]] == ["constant", "constant"]


def test_the_ceiling_counts_weights_cache_and_products() -> None:
    """Llama-2-7B at 2 TB/s and 312 TFLOP/s: 13.48 GB of weights, 0.524 MB a position, 2 P a token."""
    config = labcore.catalog.architecture("llama-2-7b")
    known = {"matmul_flops": {"float16": 312e12}, "read_bandwidth": 2.0e12, "copy_bandwidth": 1.9e12}
    ceiling = Ceiling(
        config, cast(Roofs, SimpleNamespace(device="cuda", **known, matmul_by_rows={}, **EMPTY)), "float16"
    )

    def step(*rows: tuple[int, int, int]) -> StepEvent:
        told = tuple(RowEvent("r", "decode", start, new, drawn, ()) for start, new, drawn in rows)
        return StepEvent(0, 0.0, 1.0, 0.0, told, 0, 1, 0, 1)

    decode = ceiling.seconds(step((1023, 1, 1), (2047, 1, 1)))
    assert decode == pytest.approx((13.477e9 + 3072 * 524_288) / 2.0e12, rel=1e-3)
    prefill = ceiling.seconds(step((0, 4096, 1)))
    linear = 2 * (6.738e9 - 2 * 32000 * 4096) * 4096 + 2 * 32000 * 4096
    scores = 4 * 32 * 4096 * (4096 * 4097 / 2)
    assert prefill == pytest.approx((linear + scores) / 312e12, rel=1e-3)


def test_what_there_is_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LabError, match="There is no peer 'vllm' here"):
        serving.bench_serving("story", ["vllm"])
    with pytest.raises(LabError, match="There is no workload 'weird' here"):
        serving.bench_serving("story", workloads=["weird"])
    monkeypatch.delenv("LLAMA_SERVER", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LabError, match="LLAMA_SERVER"):
        llama_server.binary()
