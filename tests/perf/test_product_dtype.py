"""What weights are multiplied in: narrow ones alone in 16 bits, both sides narrow at the narrow rate."""

from __future__ import annotations

from dataclasses import replace

import pytest

from labcore.catalog import architecture, gpu, gpus
from labcore.errors import ConfigError
from labcore.perf import balance, predict
from labcore.perf.costs import step_costs
from labcore.perf.dtypes import activation_dtype, product_dtype
from labcore.perf.forecast import forecast
from labcore.perf.peaks import Machine, machine_from_gpu, machine_from_roofs
from labcore.perf.roofline import Roofs
from labcore.serving.simulated.costs import Numbers, Part, RooflineCost

LLAMA = architecture("llama-3-8b")
A100, H100 = gpu("a100-80gb-sxm"), gpu("h100-sxm")
NARROW = ("float8", "int8", "int4")
CPU = Roofs(
    device="cpu", device_name="Abacus", threads=1, torch_version="2",
    matmul_flops={"float32": 1e11, "int8": 3e11}, matmul_shapes={}, read_bandwidth=2e10, copy_bandwidth=1e10,
    launch_overhead_s=1e-6, working_set_bytes=1 << 28, measured_at="2026-01-01T00:00:00+00:00", seconds=1.0,
)  # fmt: skip


def test_the_one_place_that_decides() -> None:
    assert [product_dtype(dtype) for dtype in ("fp32", "bf16", "float16")] == [
        "float32",
        "bfloat16",
        "float16",
    ]
    for weights in NARROW:
        assert product_dtype(weights) == activation_dtype(weights) == "float16"
    assert product_dtype("int8", "int8") == product_dtype("int4", "int8") == "int8"
    assert product_dtype("fp8", "fp8") == "float8"
    for weights, activations in (("float16", "int8"), ("float8", "int8"), ("int8", "float8")):
        with pytest.raises(ConfigError, match="but int8 with int8 or int4, int4 with int4"):
            product_dtype(weights, activations)
    with pytest.raises(ConfigError, match="float16 are not multiplied"):
        product_dtype("int8", "float16")


@pytest.mark.parametrize(("device", "ms"), [(A100, 224), (H100, 74.5)])
@pytest.mark.parametrize("dtype", NARROW)
def test_narrow_weights_do_not_shorten_a_prompt(device: object, ms: float, dtype: str) -> None:
    assert forecast(LLAMA, device, context=4096, dtype=dtype).ttft_s * 1e3 == pytest.approx(ms, rel=3e-3)  # type: ignore[arg-type]
    napkin = predict.napkin(LLAMA, device, context=4096, dtype=dtype)  # type: ignore[arg-type]
    assert napkin.ttft_s == pytest.approx(predict.ideal_prefill(LLAMA, device, 4096), rel=1e-6)  # type: ignore[arg-type]
    simulated = RooflineCost(LLAMA, device, Numbers(dtype)).seconds([Part(0, 4096)])  # type: ignore[arg-type]
    assert simulated * 1e3 == pytest.approx(ms, rel=3e-3)


@pytest.mark.parametrize("name", gpus())
def test_no_device_computes_narrow_weights_faster_than_16_bits(name: str) -> None:
    machine = machine_from_gpu(gpu(name))
    many = [predict.ideal_terms(LLAMA, machine, 512, 128, dtype) for dtype in ("float16", *NARROW)]
    assert len({terms.compute_s for terms in many}) == 1
    assert many[3].weights_s < many[0].weights_s
    assert balance.critical_batch(machine, "int4") == balance.critical_batch(machine) / 4


def test_both_sides_narrow_compute_at_their_rate_and_attention_does_not() -> None:
    wide = forecast(LLAMA, H100, context=4096, dtype="int8")
    both = forecast(LLAMA, H100, context=4096, dtype="int8", activation_dtype="int8")
    cost = RooflineCost(LLAMA, H100, Numbers("int8", activation_dtype="int8"))
    assert cost.seconds([Part(0, 4096)]) == pytest.approx(both.ttft_s, rel=3e-3)
    before, after = ({op.name: op.compute_s for op in one.prefill.operations} for one in (wide, both))
    for name in ("qkv_proj", "down_proj"):
        assert before[name] / after[name] == pytest.approx(1979 / 989)
    assert before["attention_scores"] == after["attention_scores"] > 0
    assert both.decode.memory_s == wide.decode.memory_s
    with pytest.raises(ConfigError, match="weights in float16"):
        forecast(LLAMA, H100, activation_dtype="int8")


def test_a_cpu_multiplies_integers_as_its_roofs_say() -> None:
    here = machine_from_roofs(CPU, 1 << 34)
    for dtype in ("int8", "int4"):
        assert here.flops(here.product_dtype(dtype)) == 3e11
    assert here.product_dtype("float32") == "float32"
    assert here.product_dtype("float8") == "float16"  # no kernel of ours reads these codes
    step = step_costs(LLAMA, 1, 64, 64, dtype="int8")
    rows = {op.name: op for op in predict.step_time(step, here).operations}
    assert rows["down_proj"].compute_s == step.operation("down_proj").flops / 3e11
    assert rows["attention_scores"].compute_s == step.operation("attention_scores").flops / 1e11
    on_gpu = machine_from_roofs(replace(CPU, device="cuda:0"), 1 << 34)
    assert on_gpu.flops(on_gpu.product_dtype("int8")) == 1e11


def test_the_context_that_no_batch_saves_goes_by_the_same_arithmetic() -> None:
    plain = balance.longest_compute_bound_context(LLAMA, A100)
    assert balance.longest_compute_bound_context(LLAMA, A100, "int4") == plain
    assert Machine("m", 1, 1e12, {"float16": 1e14, "int4": 4e14}).product_dtype("int4") == "float16"
