"""Predictions: the lessons' golden values, and properties any machine must satisfy."""

from __future__ import annotations

import json

import pytest

from labcore.catalog import architecture, architectures, gpu, gpus
from labcore.errors import ConfigError, DeviceError
from labcore.perf import costs, predict
from labcore.perf.predict import Machine, machine_from_gpu, machine_from_roofs
from labcore.perf.roofline import Roofs

LLAMA = architecture("llama-2-7b")
A10, A100 = gpu("a10"), gpu("a100-sxm")
ROOFS = Roofs(
    device="cpu",
    device_name="Abacus 1",
    threads=2,
    torch_version="2",
    matmul_flops={"float32": 2e11},
    matmul_shapes={"float32": (8, 8, 8)},
    read_bandwidth=2e10,
    copy_bandwidth=1.5e10,
    launch_overhead_s=2e-6,
    working_set_bytes=1 << 30,
    measured_at="2026-01-01T00:00:00+00:00",
    seconds=3.0,
)


def test_latency_and_cost() -> None:
    assert predict.latency(0.3, 0.05, 200) == pytest.approx(10.25)
    assert predict.latency(0.3, 0.05, 1) == 0.3
    assert predict.tokens_per_second(0.1) == pytest.approx(10)
    assert predict.cost_per_million(1.0, 43.6) == pytest.approx(6.37, abs=0.005)


@pytest.mark.parametrize(("batch", "ms", "rate"), [(1, 22.9, 43.6), (32, 36.8, 870)])
def test_ideal_step_of_lesson_1(batch: int, ms: float, rate: float) -> None:
    step = predict.ideal_step(LLAMA, A10, batch, 512)
    assert step * 1e3 == pytest.approx(ms, abs=0.05)
    assert predict.tokens_per_second(step, batch) == pytest.approx(rate, rel=2e-3)


@pytest.mark.parametrize(("batch", "ms", "rate"), [(1, 6.87, 145), (8, 8.72, 918), (32, 15.04, 2128)])
def test_ideal_step_of_lesson_6(batch: int, ms: float, rate: float) -> None:
    step = predict.ideal_step(LLAMA, A100, batch, 1024)
    assert step * 1e3 == pytest.approx(ms, abs=0.01)
    assert batch / step == pytest.approx(rate, rel=5e-3)
    assert predict.largest_batch(LLAMA, A100, 1024) == 123


@pytest.mark.parametrize(("dtype", "ms"), [("float16", 6.87), ("int8", 3.57), ("int4", 1.92)])
def test_narrow_weights_leave_the_cache_alone(dtype: str, ms: float) -> None:
    assert predict.ideal_step(LLAMA, A100, 1, 1024, dtype) * 1e3 == pytest.approx(ms, abs=0.005)


@pytest.mark.parametrize(("batch", "ms", "rate"), [(1, 4.98, 200.61), (8, 12.13, 659.30)])
def test_eight_tpus(batch: int, ms: float, rate: float) -> None:
    eight = machine_from_gpu(gpu("tpu-v5e")).times(8)
    step = predict.ideal_step(architecture("llama-2-13b"), eight, batch, 8192, "bfloat16")
    # The published pair rounds 26.03 GB, 6.71 GB and 819 GB/s to 26, 6.7 and 0.82.
    assert step * 1e3 == pytest.approx(ms, rel=4e-3)
    assert batch / step == pytest.approx(rate, rel=4e-3)


@pytest.mark.parametrize(
    ("name", "ridge"),
    [("a10", 208.3), ("a100-80gb-sxm", 153.0), ("l4", 403.3), ("h100-sxm", 295.2), ("h200-sxm", 206.0)],
)
def test_ridge_points(name: str, ridge: float) -> None:
    assert machine_from_gpu(gpu(name)).ridge("float16") == pytest.approx(ridge, abs=0.06)


def test_prefill_is_compute_bound_and_decode_is_not() -> None:
    prefill = predict.step_time(costs.step_costs(LLAMA, 1, 4096, 4096), A100)
    assert prefill.bound == "compute"
    # 2*P*p/F is 177 ms; attention's rectangle adds 4*L*d*p^2/F = 28, embedding and head take off 7.
    assert prefill.compute_s == pytest.approx(0.177 + 0.028 - 0.007, abs=1e-3)
    assert predict.step_time(costs.step_costs(LLAMA, 1, 4096), A100).bound == "memory"


@pytest.mark.parametrize("name", ["llama-2-7b", "llama-3-8b", "falcon-7b"])
def test_the_bracket_holds(name: str) -> None:
    for batch, context, new in ((1, 64, 1), (8, 2048, 1), (1, 512, 512)):
        time = predict.step_time(costs.step_costs(architecture(name), batch, context, new), A10)
        assert max(time.compute_s, time.memory_s) == time.low_s <= time.high_s <= 2 * time.low_s


def test_napkin_of_a_deployment_that_fits() -> None:
    answer = predict.napkin(LLAMA, A10, batch=4, context=4096, prompt=512, usd_per_hour=1.0)
    assert answer.fits
    assert answer.max_batch == 4
    assert answer.weight_bytes == 2 * costs.num_parameters(LLAMA)
    assert answer.kv_bytes == 4 * 4096 * 524_288
    assert answer.free_bytes == 24 * 10**9 - answer.weight_bytes - answer.kv_bytes
    assert answer.usd_per_million == pytest.approx(1e6 / (3600 * answer.tokens_per_s))
    assert answer.bound == "memory"
    assert json.loads(json.dumps(answer.to_dict()))["free_bytes"] == answer.free_bytes


def test_napkin_of_a_deployment_that_does_not_fit() -> None:
    answer = predict.napkin(architecture("llama-2-70b"), A10)
    assert not answer.fits
    assert answer.max_batch == 0
    assert answer.free_bytes < 0


def test_max_batch_is_the_last_that_fits() -> None:
    for context in (100, 1024, 4096):
        most = predict.largest_batch(LLAMA, A100, context)
        assert predict.napkin(LLAMA, A100, most, context).fits
        assert not predict.napkin(LLAMA, A100, most + 1, context).fits


def test_price_is_the_machines_unless_given() -> None:
    assert predict.napkin(LLAMA, A10).usd_per_hour == A10.usd_per_hour
    free = Machine("free", 10**11, 1e12, {"float16": 1e14})
    assert predict.napkin(LLAMA, free).usd_per_million is None


def test_every_shape_on_every_device() -> None:
    for device in gpus():
        for shape in architectures():
            answer = predict.napkin(architecture(shape), gpu(device), dtype="bfloat16")
            assert answer.ttft_s > 0
            assert answer.tpot_s > 0


def test_measured_roofs_make_a_machine() -> None:
    machine = machine_from_roofs(ROOFS, memory_bytes=8 << 30)
    assert machine.measured
    assert machine.name == "Abacus 1"
    assert machine.bandwidth == 2e10
    assert machine.flops("float32") == machine.flops("float16") == 2e11  # no rate of its own: in float32
    small = architecture("smollm2-135m")
    expected = (costs.weight_bytes(small, "float32") + 64 * costs.kv_bytes_per_token(small, "float32")) / 2e10
    assert predict.ideal_step(small, machine, 1, 64, "float32") == pytest.approx(expected)


def test_a_rate_that_is_not_known_is_not_guessed() -> None:
    with pytest.raises(DeviceError, match="No float32 rate"):
        machine_from_gpu(gpu("tpu-v5e")).flops("float32")


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="Batch 0"):
        predict.napkin(LLAMA, A10, batch=0)
    with pytest.raises(ConfigError, match="n must be at least 1"):
        predict.latency(0.1, 0.1, 0)
    with pytest.raises(ConfigError, match="above 0"):
        predict.cost_per_million(1.0, 0.0)
    with pytest.raises(ConfigError, match="longer than 0"):
        predict.tokens_per_second(0.0)
