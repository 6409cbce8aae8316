"""`labcore bench kernels`: what it counts, that kernels equal their references, what it leaves out."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from labcore.bench import kernel_cases, kernel_cases_weights, kernels
from labcore.bench.cli import app
from labcore.bench.kernel_case import Bench, Case, LeftOut, Sizes, difference, sets
from labcore.bench.kernel_cases_fused import fused
from labcore.config import ModelConfig
from labcore.kernels import native
from labcore.perf import timing
from labcore.perf.peaks import machine_from_roofs
from tests.bench.made_up import ROOFS, SMALL, folder_of, model_of, without_measuring
from tests.kernels.interpreter import interpreted, needs_triton, without_gpu

needs_compiler = pytest.mark.skipif(not native.available(), reason=native.status())

CONFIG = ModelConfig(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    intermediate_size=96, vocab_size=64, max_position_embeddings=128, tie_word_embeddings=True,
    attention_bias=True, mlp_bias=True, qk_norm=True,
)  # fmt: skip
SIZES = Sizes(prompt=20, context=21, batch=3, together=3, many=20)
AROUND = ["rms_norm", "apply_rope", "norm_heads", "swiglu"]
ATTENTION = [
    "attention (prompt)", "attention (one query)", "paged_attention", "paged_decode", "contiguous_decode",
]  # fmt: skip
IN_C = ["layer, before attention", "layer, after attention", "head"]


MEMORY = kernels.Memory


class Memory:
    """1.2e10 bytes/s at any time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def rate(self) -> float:
        return 1.2e10


@pytest.fixture(autouse=True)
def _no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up roofs, short samples, and a cache so small that few sets of operands outweigh it."""
    without_measuring(monkeypatch, "kernels")
    monkeypatch.setattr(kernels, "Memory", Memory)
    monkeypatch.setattr(kernels, "SAMPLE_S", 1e-5)
    monkeypatch.setattr("labcore.bench.kernel_case.cache_bytes", lambda _: 4096)


@needs_compiler
def test_every_kernel_is_measured_and_equals_its_reference() -> None:
    result = kernels.bench_kernels(model_of(CONFIG), SIZES, repeats=2)
    codes = ["linear, int8:granularity=channel"] * 2 + ["linear, int4:group=32"] * 2
    assert [row.kernel for row in result.rows] == AROUND * 2 + ATTENTION + IN_C * 2 + codes
    for row in result.rows:
        assert row.difference < (0.05 if row.kernel.startswith("linear") else 1e-5), row
        assert row.bandwidth == 1.2e10
        assert row.ceiling_share == pytest.approx(row.ceiling_s / row.seconds)
        assert row.speed_up == pytest.approx(row.reference_s / row.seconds)
    paths = {row.kernel: row.path for row in result.rows}
    assert (paths["paged_decode"], paths["contiguous_decode"], paths["head"]) == ("native",) * 3
    assert (paths["rms_norm"], paths["attention (prompt)"]) == ("torch", "native")
    assert [one.name for one in result.left_out] == ["fused_linear"]
    assert (result.bandwidth, result.flops) == (1.2e10, {"float32": 1e11, "int8": 4e11})


def moved_and_computed(case: Case) -> tuple[int, int]:
    return case.moved, case.flops


def test_bytes_and_flops_by_hand() -> None:
    bench = Bench(model_of(CONFIG), SIZES)
    assert moved_and_computed(kernel_cases.rms_norm(bench, 20)) == (4 * (2 * 20 * 64 + 64), 0)
    heads = 20 * 6 * 16
    assert moved_and_computed(kernel_cases.apply_rope(bench, 20)) == (4 * (2 * heads + 2 * 20 * 16), 0)
    assert moved_and_computed(kernel_cases.norm_heads(bench, 20)) == (4 * (2 * heads + 2 * 16), 0)
    assert moved_and_computed(kernel_cases.swiglu(bench, 20)) == (4 * 20 * 3 * 96, 0)
    pairs = 20 * 21 // 2
    prompt = kernel_cases.prompt_attention_case(bench)
    assert moved_and_computed(prompt) == (4 * 20 * (4 + 4 + 2 + 2) * 16, 4 * 4 * 16 * pairs)
    held, asked = 2 * 2 * 21 * 16, 2 * 4 * 16  # keys and values; queries and results
    one = kernel_cases.one_query(bench)
    assert moved_and_computed(one) == (4 * 3 * (held + asked), 4 * 3 * 4 * 16 * 21)
    tables = 4 * 3 * 2  # two blocks of 16 hold 21 positions
    assert kernel_cases.paged_attention(bench).moved == one.moved + tables
    assert kernel_cases.paged_decode(bench).moved == one.moved + tables + 4 * 3 * 2 * 2 * 16
    assert kernel_cases.contiguous_decode(bench).moved == one.moved + 4 * 3 * 2 * 2 * 16


@needs_compiler
def test_bytes_and_flops_of_weights_by_hand() -> None:
    bench = Bench(model_of(CONFIG), SIZES)
    before = kernel_cases_weights.before_attention(bench, 3)
    weights = 8 * 16 * 64 + 8 * 16 + 64  # queries, keys and values; their bias; the norm
    assert before.moved == 4 * (weights + 3 * (64 + 8 * 16) + 2 * 16)
    assert before.flops == 2 * 3 * 8 * 16 * 64
    after = kernel_cases_weights.after_attention(bench, 3)
    weights = 64 * 64 + 64 + (2 * 96 * 64 + 2 * 96) + (64 * 96 + 64)  # o, norm, gate and up, down
    assert after.moved == 4 * (weights + 3 * (64 + 2 * 64))
    assert after.flops == 2 * 3 * (64 * 64 + 3 * 96 * 64)
    head = kernel_cases_weights.head(bench, 1)
    assert head.moved == 4 * (64 * 64 + 64 + 64 + 64)
    int8, *_ = (case for case in kernel_cases_weights.quantized(bench) if isinstance(case, Case))
    codes = 2 * 96 * 64 + 2 * 2 * 96  # a byte each; a scale of two bytes a row
    assert int8.moved == codes + 4 * (64 + 2 * 96)
    assert (int8.flops, int8.computes) == (2 * 2 * 96 * 64, ("float32", "int8"))


def test_the_ceiling_is_the_longer_of_moving_and_computing() -> None:
    def case(moved: int, flops: int, *formats: str) -> Case:
        return Case("", "", "", (), (), moved, flops, formats)

    machine = machine_from_roofs(ROOFS, 0)  # 1e11 FLOP/s in float32, four times as many in int8
    assert kernels.ceiling(case(6_000, 300, "float32"), 6e3, machine) == (1.0, "memory")
    assert kernels.ceiling(case(12, 300_000_000_000, "float32"), 6e3, machine) == (3.0, "compute")
    assert kernels.ceiling(case(12, 2_000_000_000_000, "float32", "int8"), 6e3, machine) == (5.0, "compute")


def test_the_memory_is_read_or_copied_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.roof_measuring, "working_set", lambda _: 1 << 20)
    memory = MEMORY(torch.device("cpu"))
    clock = itertools.count(0.0, 0.5)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    assert memory.rate() == 2 * (1 << 20)


def test_sets_of_operands_outweigh_the_cache() -> None:
    cpu = torch.device("cpu")  # whose cache holds 4096 bytes here
    assert [sets(moved, cpu) for moved in (1, 1000, 4096, 10_000)] == [64, 9, 2, 1]
    assert sets(1000, cpu, most=5) == 5


@pytest.mark.parametrize(
    ("seconds", "count", "calls"), [(1.0, 4, 1), (1e-3, 4, 8), (4e-3, 100, 1), (1e-9, 3, 2001)]
)
def test_a_sample_is_whole_rounds_unless_that_takes_too_long(
    seconds: float, count: int, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "SAMPLE_S", 5e-3)
    assert kernels.calls_for(seconds, count) == calls


def test_a_sample_takes_the_operands_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "calls_for", lambda *_: 4)
    clock = itertools.count(0.0, 8.0)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    order: list[str] = []
    calls = [lambda name=name: order.append(name) or torch.zeros(1) for name in "abc"]
    sample = kernels.sampler(calls, torch.device("cpu"), recorded=False)
    order.clear()
    assert sample() == 8.0 / 4
    sample()
    assert "".join(order) == "abca" + "bcab"


def test_difference_is_relative_to_the_largest_number() -> None:
    expected = torch.tensor([1.0, -4.0])
    assert difference(torch.tensor([1.0, -3.0]), expected) == 0.25
    assert difference((torch.tensor([1.0]), torch.tensor([-4.0])), expected) == 0.0


def test_what_cannot_run_is_left_out_with_the_reason() -> None:
    result = kernels.bench_kernels(model_of(CONFIG, torch.bfloat16), SIZES, repeats=1)
    reasons = {one.name: one.reason for one in result.left_out}
    assert "float32, and this model is in bfloat16 on cpu" in reasons["native layer and head"]
    assert "CUDA GPU only" in reasons["fused_linear"]
    assert {name for name in reasons if name.startswith("linear")} == {
        f"linear, {fmt}, {tokens}"
        for fmt in ("int8:granularity=channel", "int4:group=32")
        for tokens in (1, 20)
    }
    assert [row.kernel for row in result.rows] == AROUND * 2 + ATTENTION
    assert {row.path for row in result.rows} == {"torch"}


@needs_compiler
def test_groups_that_do_not_divide_are_left_out() -> None:
    bench = Bench(model_of(CONFIG.with_(hidden_size=48)), SIZES)
    found = list(kernel_cases_weights.quantized(bench))
    assert [type(one) for one in found] == [Case, Case, LeftOut, LeftOut]
    assert "Groups of 32 do not divide the 48 columns" in found[3].reason


def test_without_the_c_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "available", lambda: False)
    monkeypatch.setattr(native, "status", lambda: "native CPU kernels off: no compiler.")
    bench = Bench(model_of(CONFIG), SIZES)
    (left_out,) = kernel_cases_weights.layers_in_c(bench)
    assert left_out == LeftOut("native layer and head", "native CPU kernels off: no compiler.")
    for case in (kernel_cases.paged_decode(bench), kernel_cases.contiguous_decode(bench)):
        assert case.path == "torch"
        assert difference(case.fast[0](), case.plain[0]()) < 1e-5


def check_fused(device: str, dtype: torch.dtype, limit: float) -> None:
    """Raises AssertionError where a fused product and its plain operations differ by more than `limit`."""
    bench = Bench(model_of(CONFIG, dtype, device), SIZES)
    names = []
    for case in fused(bench):
        names.append(case.kernel)
        for fast, plain in zip(case.fast, case.plain, strict=True):
            assert difference(fast(), plain()) < limit, case.kernel
    assert names == [f"fused_linear ({what})" for what in ("norm", "norm, turn", "residual", "norm, gate")]


@needs_triton
@without_gpu
def test_fused_products_in_the_interpreter() -> None:
    code = (
        "import torch; from tests.bench import test_kernels_bench as t\n"
        "t.check_fused('cpu', torch.float32, 1e-5); print('ok')"
    )
    assert interpreted(code) == "ok"


@needs_triton
def test_bytes_and_flops_of_fused_products_by_hand() -> None:
    found = {case.kernel: moved_and_computed(case) for case in fused(Bench(model_of(CONFIG), SIZES))}
    qkv, gate_up = 8 * 16, 2 * 96
    assert found == {
        "fused_linear (norm)": (4 * (64 * 64 + 2 * 64 + 64), 2 * 64 * 64),
        "fused_linear (norm, turn)": (4 * (qkv * 64 + qkv + 2 * 64 + qkv + 2 * 16), 2 * qkv * 64),
        "fused_linear (residual)": (4 * (64 * 96 + 64 + 96 + 2 * 64), 2 * 64 * 96),
        "fused_linear (norm, gate)": (4 * (gate_up * 64 + gate_up + 2 * 64 + 96), 2 * gate_up * 64),
    }


@pytest.mark.gpu
@needs_triton
def test_on_a_gpu() -> None:
    check_fused("cuda", torch.bfloat16, 3e-2)
    result = kernels.bench_kernels(model_of(CONFIG, torch.bfloat16, "cuda"), SIZES, repeats=2)
    first, *others = result.left_out
    assert first.name == "native layer and head"
    assert all("the definition was the quickest" in one.reason for one in others)  # so small, it may be
    assert sum(row.kernel.startswith("fused_linear") for row in result.rows) == 4
    assert all(row.difference < 0.05 for row in result.rows), result.rows


def test_the_command_writes_what_it_shows(tmp_path: Path) -> None:
    out, model = tmp_path / "kernels.json", folder_of(SMALL, tmp_path / "tiny")
    words = ["kernels", "--model", str(model), "--device", "cpu", "--repeats", "1", "--prompt", "20",
             "--context", "8", "--batch", "2", "--out", str(out)]  # fmt: skip
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    data = json.loads(out.read_text())
    assert data["benchmark"] == "kernels"
    sizes = {"prompt": 20, "context": 8, "batch": 2, "together": 16, "many": 512}
    assert data["result"]["sizes"] == sizes
    assert data["result"]["rows"][0]["kernel"] == "rms_norm"
    assert "Left out: fused_linear: it runs on a CUDA GPU only" in done.output
