"""What follows from costs and roofs for whoever serves: balance, brackets, the best batch. Golden values."""

from __future__ import annotations

import pytest

from labcore.catalog import architecture, gpu
from labcore.errors import ConfigError
from labcore.perf import balance, costs, predict
from labcore.perf.forecast import best_batch, forecast, pareto
from labcore.perf.peaks import Machine, machine_from_gpu

LLAMA = architecture("llama-2-7b")
A100 = gpu("a100-80gb-sxm")
ROWS = {"float16": ((1, 1e12), (16, 1e13), (256, 1e14))}


def test_ridges_and_critical_batches() -> None:
    ridges = {"a10": 208.3, "a100-80gb-sxm": 153.0, "l4": 403.3, "h100-sxm": 295.2, "h200-sxm": 206.0}
    for name, ridge in ridges.items():
        assert machine_from_gpu(gpu(name)).ridge() == pytest.approx(ridge, abs=0.05)
    expected = {"float16": 153, "int8": 77, "int4": 38}
    for dtype, batch in expected.items():
        assert balance.critical_batch(A100, dtype) == pytest.approx(batch, abs=0.6)


def test_attainable_rates() -> None:
    a10 = gpu("a10")
    assert balance.attainable(a10, 50) == pytest.approx(30e12)
    assert balance.attainable(a10, 50) / 125e12 == pytest.approx(0.24)
    assert balance.attainable(a10, 400) / balance.attainable(a10, 100) == pytest.approx(2.08, abs=0.005)
    assert costs.elementwise_costs(10**6).intensity == pytest.approx(1 / 4)
    with pytest.raises(ConfigError, match="-1"):
        balance.attainable(a10, -1)


def test_where_the_cache_outweighs_the_weights_and_the_ridge_is_never_reached() -> None:
    assert int(balance.balance_batch(LLAMA, 1024)) == 25
    assert balance.longest_compute_bound_context(LLAMA, A100) == pytest.approx(169, abs=0.5)
    assert balance.longest_compute_bound_context(architecture("llama-3-8b"), A100) == pytest.approx(
        822, abs=1
    )
    fast_memory = Machine("m", 10**12, 1e15, {"float16": 1e14})
    assert balance.longest_compute_bound_context(LLAMA, fast_memory) == float("inf")
    with pytest.raises(ConfigError, match="at least 1"):
        balance.balance_batch(LLAMA, 0)


def test_utilisation() -> None:
    seen = balance.utilisation(Machine("m", 1, 2e12, {"float16": 1e15}), 0.014, bytes_moved=14e9, flops=14e9)
    assert seen.mbu == pytest.approx(0.5)
    assert seen.mfu == pytest.approx(0.001)
    with pytest.raises(ConfigError, match="longer than 0"):
        balance.utilisation(A100, 0.0, bytes_moved=1)


@pytest.mark.parametrize(
    ("name", "ms"), [("a10", 23.3), ("a100-80gb-sxm", 6.87), ("h100-sxm", 4.18), ("h200-sxm", 2.92)]
)
def test_the_floor_of_14_gigabytes(name: str, ms: float) -> None:
    assert 14e9 / gpu(name).bandwidth * 1e3 == pytest.approx(ms, abs=0.05)


@pytest.mark.parametrize(("batch", "ms", "rate"), [(1, 6.87, 145), (8, 8.72, 918), (32, 15.04, 2128)])
def test_the_napkins_decode_step(batch: int, ms: float, rate: float) -> None:
    seconds = predict.ideal_step(LLAMA, A100, batch, 1024)
    assert seconds * 1e3 == pytest.approx(ms, abs=0.005)
    assert batch / seconds == pytest.approx(rate, abs=1)
    assert predict.largest_batch(LLAMA, A100, 1024) == 123


@pytest.mark.parametrize(("batch", "ms", "rate"), [(1, 4.98, 200.61), (8, 12.13, 659.30)])
def test_eight_devices_as_one(batch: int, ms: float, rate: float) -> None:
    """Llama-2-13B on 8 TPU v5e, 8,192 tokens of multi-head cache a sequence: 26 GB and 6.7 GB."""
    pod = Machine("pod", 1, 8 * 0.82e12, {"bfloat16": 8 * 197e12})
    seconds = (26e9 + batch * 6.7e9) / pod.bandwidth
    assert seconds * 1e3 == pytest.approx(ms, abs=0.01)
    assert batch / seconds == pytest.approx(rate, rel=2e-3)
    ours = predict.ideal_step(architecture("llama-2-13b"), pod, batch, 8192, "bfloat16")
    assert ours == pytest.approx(seconds, rel=5e-3)


def test_the_expected_time_lies_in_the_bracket() -> None:
    machine = Machine("m", 10**12, 1e12, {"float16": 1e14}, by_rows=ROWS, measured=True)
    for batch, context, new in ((1, 500, 1), (64, 500, 1), (1, 500, 500)):
        step = predict.step_time(costs.step_costs(LLAMA, batch, context, new), machine, overhead_s=1e-3)
        assert step.low_s <= step.expected_s <= step.high_s
        assert step.low_s >= 1e-3
    assert predict.step_time(costs.step_costs(LLAMA, 1, 9), machine, overhead_s=10.0).bound == "overhead"


def test_few_rows_are_computed_slower() -> None:
    machine = Machine("m", 10**12, 1e12, {"float16": 1e14}, by_rows=ROWS)
    assert machine.flops("float16", 1) == 1e12
    assert machine.flops("float16", 4) == pytest.approx(5.5e12)
    assert (
        machine.flops("float16", 256) == machine.flops("float16") == machine.flops("float16", 10**6) == 1e14
    )
    assert machine_from_gpu(A100).flops("float16", 1) == 312e12
    assert machine.times(2).flops("float16", 1) == 2e14  # of several devices nothing was measured


def test_an_offloaded_cache_waits_for_the_link() -> None:
    machine = Machine("m", 10**12, 1e12, {"float16": 1e14}, host_bandwidth=1e9)
    traffic = costs.CacheTraffic(host=True)
    step = predict.step_time(costs.step_costs(LLAMA, 8, 4096, traffic=traffic), machine)
    assert step.bound == "host"
    assert step.expected_s == pytest.approx(8 * 4095 * 524_288 / 1e9)


def test_a_forecast_of_the_wall() -> None:
    rows = list(pareto(LLAMA, A100, context=1024))
    assert [row.load.batch for row in rows if row.fits][-1] == rows[0].max_batch
    assert not rows[-1].fits
    latencies, rates = zip(*((row.tpot_s, row.tokens_per_s) for row in rows), strict=True)
    assert sorted(latencies) == list(latencies)
    assert sorted(rates) == list(rates)
    assert rows[0].usd_per_million > rows[-1].usd_per_million


def test_the_best_batch_within_a_latency() -> None:
    found = best_batch(LLAMA, A100, tpot_s=0.012, context=1024)
    batch = found.load.batch
    assert found.tpot_s <= 0.012
    assert forecast(LLAMA, A100, context=1024, batch=batch + 1).tpot_s > 0.012
    assert best_batch(LLAMA, A100, tpot_s=10.0, context=1024).load.batch == found.max_batch
    with pytest.raises(ConfigError, match="more than the 1 ms asked for"):
        best_batch(LLAMA, A100, tpot_s=0.001, context=1024)
    with pytest.raises(ConfigError, match="Not one sequence fits"):
        best_batch(architecture("llama-2-70b"), gpu("a10"), tpot_s=1.0)


def test_narrow_weights_and_cache_are_forecast() -> None:
    whole = forecast(LLAMA, A100, context=1024)
    packed = forecast(LLAMA, A100, context=1024, weight_bits=4.125, cache_bits=4.5)
    assert whole.tpot_s / packed.tpot_s > 2.5
    assert packed.to_dict()["tpot_s"] == packed.tpot_s
