"""Profiles: made-up events for whose time it is, real steps for what they are made of."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.profiler import record_function

import labcore
from labcore.cache import create
from labcore.errors import DeviceError, LabError
from labcore.perf import roofline
from labcore.perf.costs import step_costs
from labcore.perf.profile import KINDS, Profile, Regime, profile
from labcore.perf.profiling.attribution import device_segments, host_segments, seconds_by_kind
from labcore.perf.profiling.events import TRACES, Raw, Traced, require_device_events
from labcore.perf.profiling.kinds import kind_of, own_kind, whole_kind
from labcore.perf.profiling.regime import Work, name_regime
from labcore.perf.roofline import Roofs

ROOFS = Roofs(
    device="cpu",
    device_name="Abacus 1",
    threads=1,
    torch_version="2",
    matmul_flops={"float32": 5e10},
    matmul_shapes={"float32": (8, 16, 32)},
    read_bandwidth=1e10,
    copy_bandwidth=9e9,
    launch_overhead_s=1e-6,
    working_set_bytes=1 << 20,
    measured_at="2026-01-01T00:00:00+00:00",
    seconds=1.0,
)


def _sums_up(step: Profile) -> bool:
    return sum(step.by_kind.values()) == pytest.approx(step.traced_s, rel=1e-9)


# Names


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::scaled_dot_product_attention", "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("labcore::attention_native", "attention"),
        ("void pytorch_flash::flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits<64>>", "attention"),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80", "attention"),
        ("_attend", "attention"),
        ("aten::addmm", "matmul"),
        ("aten::_scaled_mm", "matmul"),
        ("labcore::linear_native (o, mlp)", "matmul"),
        ("nvjet_hsh_128x256_64x4_2x1_v_bz_TNT", "matmul"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32", "matmul"),
        ("void gemv2T_kernel_val<int, float>", "matmul"),
        ("triton_tem_fused_mm_0", "matmul"),
        ("aten::_softmax", "norm and elementwise"),
        ("aten::mul_", "norm and elementwise"),
        ("void at::native::vectorized_elementwise_kernel<4, CUDAFunctor_add<float>>", "norm and elementwise"),
        ("triton_poi_fused_add_mul_silu_3", "norm and elementwise"),
        ("aten::copy_", "copies"),
        ("aten::embedding", "copies"),
        ("Memcpy HtoD (Pinned -> Device)", "copies"),
        ("void at::native::elementwise_kernel<128, 4, direct_copy_kernel_cuda>", "copies"),
        ("c10d::allreduce_", "communication"),
        ("gloo:all_reduce", "communication"),
        ("ncclDevKernel_AllReduce_Sum_bf16_RING_LL", "communication"),
        ("labcore::all_reduce", "communication"),
        ("aten::view", None),
        ("aten::sort", None),
        ("cudaLaunchKernel", None),
    ],
)
def test_a_name_tells_its_kind(name: str, kind: str | None) -> None:
    assert kind_of(name) == kind


def test_what_only_asks_has_no_kind() -> None:
    assert own_kind("aten::view") is None
    assert own_kind("aten::sort") == own_kind("mylib::op") == "other"
    assert own_kind("cudaDeviceSynchronize") is None


def test_only_labels_of_the_engine_are_believed() -> None:
    assert whole_kind("attention of layer 3", label=True) is None
    assert own_kind("attention of layer 3", label=True) is None
    assert whole_kind("labcore::attention_native", label=True) == "attention"


def test_a_compiled_region_is_elementwise_between_its_calls() -> None:
    name = "## Call CompiledFxGraph f3 ##"
    assert whole_kind(name, label=True) is None
    assert own_kind(name, label=True) == "norm and elementwise"


# Whose time it is


def _seconds(events: list[Raw], seconds: float = 10.0, on_device: bool = False) -> dict[str, float]:
    traced = Traced(tuple(events), thread=0, seconds=seconds)
    segments = device_segments(traced) if on_device else host_segments(traced)
    found = seconds_by_kind(segments, seconds)
    assert sum(found.values()) == pytest.approx(seconds)
    return {kind: spent for kind, spent in found.items() if spent}


def test_nested_operators_count_to_the_outermost() -> None:
    events = [
        Raw("aten::scaled_dot_product_attention", 1, 5),
        Raw("aten::bmm", 2, 3),
        Raw("aten::_softmax", 3, 4),
        Raw("my layer", 6, 10, label=True),
        Raw("aten::reshape", 6, 8),
        Raw("aten::clone", 7, 8),
        Raw("aten::linear", 8, 9),
        Raw("aten::addmm", 8.5, 9),
    ]
    assert _seconds(events) == {"attention": 4, "copies": 1, "matmul": 1, "launch gaps": 4}
    traced = Traced(tuple(events), thread=0, seconds=10)
    assert sum(segment.operations for segment in host_segments(traced)) == 4  # bmm, softmax, clone, addmm


def test_an_unknown_operator_keeps_what_its_insides_leave() -> None:
    events = [Raw("mylib::op", 0, 10), Raw("aten::mm", 2, 5)]
    assert _seconds(events) == {"other": 7, "matmul": 3}
    pieces = host_segments(Traced(tuple(events), thread=0, seconds=10))
    assert [piece.first for piece in pieces if piece.kind == "other"] == [True, False]


def test_a_collective_on_another_thread_fills_what_the_step_waits_for() -> None:
    events = [
        Raw("c10d::allreduce_", 0, 1),
        Raw("gloo:all_reduce", 0.5, 6, thread=3, label=True, loose=True),
        Raw("aten::copy_", 4, 6, thread=3),
        Raw("aten::mm", 2, 3),  # hides a part of it
    ]
    assert _seconds(events) == {"communication": 5, "matmul": 1, "launch gaps": 4}


def test_kernels_take_the_kind_of_who_launched_them() -> None:
    events = [
        Raw("aten::scaled_dot_product_attention", 0, 1, id=7),
        Raw("aten::bmm", 0.2, 0.4, id=8),
        Raw("cudaLaunchKernel", 0.3, 0.4, id=9),
        Raw("ampere_sgemm_128x64", 1, 3, stream=7, launched_by=8),
        Raw("ampere_sgemm_128x64", 3, 4, stream=7),  # replayed from a graph: nobody launched it
        Raw("mystery", 4, 5, stream=7, launched_by=9),
    ]
    assert _seconds(events, on_device=True) == {"attention": 2, "matmul": 1, "other": 1, "launch gaps": 6}


def test_communication_hidden_by_a_kernel_costs_nothing() -> None:
    events = [
        Raw("ncclDevKernel_AllReduce", 0, 6, stream=20),
        Raw("sm90_gemm", 1, 5, stream=7),
        Raw("vectorized_elementwise_kernel", 4, 7, stream=8),
    ]
    found = _seconds(events, on_device=True)
    assert found == {"communication": 1, "matmul": 4, "norm and elementwise": 2, "launch gaps": 3}


def test_what_sticks_out_of_the_step_is_cut_off() -> None:
    assert _seconds([Raw("aten::mm", -1, 2), Raw("aten::add", 9, 12)]) == {
        "matmul": 2,
        "norm and elementwise": 1,
        "launch gaps": 7,
    }


# Regimes, of made-up terms

WORK = Work(wall_s=1.0, flops=0, bytes=0, operations=0, communication_s=0.0, gaps_s=0.0)


@pytest.mark.parametrize(
    ("work", "name", "evidence"),
    [
        (replace(WORK, flops=4e10, bytes=10**9), "compute", "40 GFLOP at this device's 50 GFLOP/s take 800"),
        (replace(WORK, flops=10**9, bytes=4 * 10**9), "bandwidth", "4 GB at this device's 10 GB/s take 400"),
        (replace(WORK, communication_s=0.5, bytes=10**9), "communication", "nothing hid took 500 ms"),
        (replace(WORK, operations=1000, gaps_s=0.3), "overhead", "300 ms in which nothing ran and 1000 op"),
        (WORK, "overhead", "0 operations"),
    ],
)  # fmt: skip
def test_the_largest_term_names_the_regime(work: Work, name: str, evidence: str) -> None:
    regime = name_regime(work, ROOFS)
    assert regime.name == name
    assert evidence in regime.sentence
    assert "of a step of 1 s" in regime.sentence
    assert set(regime.terms) == {"compute", "bandwidth", "communication", "overhead"}
    assert regime.to_dict()["terms"][name] == max(regime.terms.values())


def test_overhead_is_at_most_the_step() -> None:
    regime = name_regime(replace(WORK, operations=2_000_000, gaps_s=0.5), ROOFS)
    assert regime.terms["overhead"] == 1.0
    assert "capped at the step" in regime.sentence


def test_a_small_working_set_is_said_to_fit_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labcore.perf.profiling.regime.last_level_cache_bytes", lambda: 32 << 20)
    assert "last-level cache of 33.6 MB" in name_regime(replace(WORK, bytes=10**7), ROOFS).sentence
    assert "cache" not in name_regime(replace(WORK, bytes=10**8), ROOFS).sentence
    on_gpu = replace(ROOFS, device="cuda:0")
    assert "cache" not in name_regime(replace(WORK, bytes=10**7), on_gpu).sentence


def test_a_dtype_without_a_rate_is_refused() -> None:
    with pytest.raises(DeviceError, match="No float64 rate"):
        name_regime(replace(WORK, flops=1), ROOFS, "float64")


# Regimes, of real work


def test_a_large_product_is_bound_by_compute() -> None:
    left, right = torch.randn(1024, 1024), torch.randn(1024, 1024)
    step = profile(lambda: left @ right, roofs=ROOFS, warmup=1)
    assert step.regime.name == "compute"
    assert step.flops == 2 * 1024**3
    assert max(step.shares, key=lambda kind: step.shares[kind]) == "matmul"
    assert _sums_up(step)


def test_a_chain_over_64_million_numbers_is_bound_by_bandwidth() -> None:
    numbers = torch.ones(64 << 20)
    step = profile(lambda: numbers.add_(1).mul_(0.5), roofs=ROOFS, warmup=1)
    assert step.regime.name == "bandwidth"
    assert step.bytes == 4 * numbers.nbytes
    assert step.operations == 2
    assert max(step.shares, key=lambda kind: step.shares[kind]) == "norm and elementwise"


def test_a_thousand_tiny_operations_are_bound_by_overhead() -> None:
    number = torch.zeros(1)

    def many() -> None:
        for _ in range(1000):
            number.add_(1)

    step = profile(many, roofs=ROOFS, label="tiny")
    assert step.regime.name == "overhead"
    assert step.operations == 1000
    assert (step.top[0].name, step.top[0].calls) == ("aten::add_", 1000)
    assert len(step.events) == 1000
    assert all(event.lane == "host" for event in step.events)
    assert _sums_up(step)


def test_waiting_under_a_label_is_communication() -> None:
    def step() -> None:
        with record_function("labcore::all_reduce"):
            time.sleep(0.02)

    found = profile(step, roofs=ROOFS)
    assert found.regime.name == "communication"
    assert found.shares["communication"] > 0.5


_TWO_PROCESSES = """
import sys, json, torch, torch.distributed as dist
from labcore.perf.profile import profile
from labcore.perf.roofline import Roofs
torch.set_num_threads(1)
rank, meeting, roofs = int(sys.argv[1]), sys.argv[2], Roofs(**json.loads(sys.argv[3]))
dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
numbers, hidden = torch.ones(1 << 22), torch.ones(64, 64)
def step():
    hidden @ hidden
    dist.all_reduce(numbers)
found = profile(step, roofs=roofs)
dist.barrier()
print(json.dumps(found.to_dict()))
dist.destroy_process_group()
"""


def test_an_all_reduce_is_bound_by_communication(tmp_path: Path) -> None:
    roofs = replace(ROOFS, launch_overhead_s=1e-7).to_dict()
    command = [sys.executable, "-c", _TWO_PROCESSES]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "meeting"), json.dumps(roofs)], stdout=subprocess.PIPE
        )
        for rank in range(2)
    ]
    for process in ranks:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        found = json.loads(out)
        assert found["regime"]["name"] == "communication"
        assert found["shares"]["communication"] > 0.5
        assert found["by_kind"]["matmul"] > 0
        assert sum(found["by_kind"].values()) == pytest.approx(found["traced_s"])
        assert found["bytes"] == 2 * 64 * 64 * 4  # of the product alone: what is sent is not of the memory


# The engine


@pytest.fixture(scope="module")
def story() -> labcore.Model:
    return labcore.load("story")


def _step(model: labcore.Model, fast: bool, new: int) -> Callable[[], torch.Tensor]:
    """Positions 32 - new .. 31, the same ones at each call."""
    model.transformer.fast = fast
    tokens = torch.arange(32)[None]
    cache = create(
        "contiguous", model.config, batch_size=1, capacity=64, device=model.device, dtype=model.dtype
    )
    if new < 32:
        with torch.inference_mode():
            model.transformer(tokens[:, :-new], cache)

    @torch.inference_mode()
    def step() -> torch.Tensor:
        cache.truncate(32 - new)
        return model.transformer(tokens[:, -new:], cache, logits_to_keep=1)

    return step


@pytest.mark.parametrize("new", [1, 32], ids=["decode", "prefill"])
@pytest.mark.parametrize("fast", [True, False], ids=["native", "readable"])
def test_a_step_of_the_model_has_its_kinds(story: labcore.Model, fast: bool, new: int) -> None:
    costs = step_costs(story.config, 1, 32, new, dtype="float32")
    step = profile(_step(story, fast, new), costs=costs, roofs=ROOFS, label="story")
    assert list(step.by_kind) == list(KINDS)
    assert _sums_up(step)
    assert all(step.by_kind[kind] > 0 for kind in ("attention", "matmul", "copies", "norm and elementwise"))
    assert step.by_kind["communication"] == 0
    assert (step.flops, step.bytes) == (costs.flops, costs.bytes)
    assert isinstance(step.regime, Regime)
    assert 0 < step.host_s < step.traced_s
    assert step.device_s == 0
    assert step.overhead == step.traced_s / step.wall_s
    assert sum(step.shares.values()) == pytest.approx(1)
    assert json.loads(json.dumps(step.to_dict()))["label"] == "story"


def test_labels_change_no_logit_and_stay_off_unasked(story: labcore.Model) -> None:
    step = _step(story, fast=True, new=1)
    plain = step()
    if not story.transformer._native:
        pytest.skip("no native kernels here")
    with torch.profiler.profile() as seen:
        labelled = step()
    assert torch.equal(plain, labelled)
    names = {event.key for event in seen.key_averages()}
    assert names >= {
        "labcore::linear_native (norm, qkv, rope)",
        "labcore::attention_native",
        "labcore::linear_native (o, mlp)",
        "labcore::linear_native (head)",
    }


def test_native_kernels_that_nobody_counted_are_told(story: labcore.Model) -> None:
    step = _step(story, fast=True, new=1)
    step()
    if not story.transformer._native:
        pytest.skip("no native kernels here")
    assert "native calls is not counted" in profile(step, roofs=ROOFS).regime.sentence


# The rest of the contract


def test_the_function_is_called_as_often_as_is_said() -> None:
    calls = []
    profile(lambda: calls.append(1), roofs=ROOFS, warmup=3, repeats=6)
    assert len(calls) == 3 + 6 + TRACES + 1
    calls.clear()
    costs = step_costs(labcore.load("story").config, 1, 1)
    profile(lambda: calls.append(1), roofs=ROOFS, costs=costs)
    assert len(calls) == 2 + 5 + TRACES


def test_without_roofs_the_device_s_own_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def own(device: torch.device, *, dtype: object = None) -> Roofs:
        asked.append(dtype)
        return replace(ROOFS, matmul_flops={str(dtype or "float32"): 5e10})

    monkeypatch.setattr(roofline, "roofs", own)
    single, double = torch.ones(4, 4), torch.ones(4, 4, dtype=torch.float64)
    profile(lambda: single @ single)
    assert asked == [None]
    profile(lambda: double @ double)
    assert asked == [None, None, "float64"]


def test_the_trace_opens_in_a_viewer(tmp_path: Path) -> None:
    target = tmp_path / "new folder" / "step.json"
    profile(lambda: torch.ones(3) + 1, roofs=ROOFS, trace_path=target)
    events = json.loads(target.read_text())["traceEvents"]
    assert "aten::add" in {event.get("name") for event in events}


def test_a_trace_that_cannot_be_written_is_refused_before_the_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LabError, match=r"cannot be written to .*file/step\.json"):
        profile(lambda: None, roofs=ROOFS, trace_path=tmp_path / "file" / "step.json")


def test_an_error_of_the_function_passes_with_the_profiler_closed(tmp_path: Path) -> None:
    calls = []

    def fails_when_traced() -> None:
        calls.append(1)
        if torch.autograd._profiler_enabled():
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        profile(fails_when_traced, roofs=ROOFS, trace_path=tmp_path / "step.json")
    assert len(calls) == 8
    assert not torch.autograd._profiler_enabled()
    assert not (tmp_path / "step.json").exists()
    assert profile(lambda: torch.ones(1), roofs=ROOFS).operations == 1


def test_a_second_profiler_is_refused() -> None:
    with torch.profiler.profile(), pytest.raises(LabError, match="active already"):
        profile(lambda: None, roofs=ROOFS)


def test_devices_that_cannot_be_traced_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match="cuda:99"):
        profile(lambda: None, device="cuda:99")
    monkeypatch.setattr("labcore.perf.profile.resolve_device", lambda device: torch.device("mps"))
    with pytest.raises(DeviceError, match="sees 0 kernels on mps"):
        profile(lambda: None, device="mps")


def test_a_driver_that_tells_nothing_is_named_with_its_mend() -> None:
    cuda = torch.device("cuda", 0)
    require_device_events((Raw("kernel", 0, 1, stream=7),), cuda)
    with pytest.raises(LabError, match="NVreg_RestrictProfilingToAdminUsers=0"):
        require_device_events((Raw("aten::add", 0, 1),), cuda)


@pytest.mark.gpu
def test_a_gpu_step_is_made_of_its_kernels() -> None:
    left = torch.randn(4096, 4096, device="cuda")
    step = profile(lambda: (left @ left).add_(1), device="cuda", roofs=replace(ROOFS, device="cuda:0"))
    assert step.by_kind["matmul"] > step.by_kind["norm and elementwise"] > 0
    assert any(event.lane.startswith("stream ") for event in step.events)
    assert 0 < step.device_s <= step.traced_s
    assert _sums_up(step)
