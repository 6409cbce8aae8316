"""Roofs: measured for real once and small; the cache with a measurement that the test makes up."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from labcore.errors import DeviceError, OutOfMemory
from labcore.perf import roof_measuring as measuring
from labcore.perf import roofline
from labcore.perf.roofline import Roofs, measure_roofs, roofs

CPU = torch.device("cpu")
DEFAULT = ("float32", "bfloat16", "int8")
MADE_UP = Roofs(
    device="cpu",
    device_name="Abacus 1",
    threads=1,
    torch_version="2",
    matmul_flops={"float32": 1e11},
    matmul_shapes={"float32": (8, 16, 32)},
    read_bandwidth=1e10,
    copy_bandwidth=9e9,
    launch_overhead_s=1e-6,
    working_set_bytes=1 << 20,
    measured_at="2026-01-01T00:00:00+00:00",
    seconds=1.0,
)


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The formats of each measurement made; the n-th one reads n times the bandwidth."""
    calls: list[tuple[str, ...]] = []

    def made_up(device: torch.device, dtypes: tuple[str, ...]) -> Roofs:
        calls.append(dtypes)
        return replace(MADE_UP, read_bandwidth=1e10 * len(calls))

    monkeypatch.setenv("LABCORE_CACHE", str(tmp_path))
    monkeypatch.setattr(roofline, "measure_roofs", made_up)
    return calls


def _file(folder: Path) -> Path:
    (file,) = (folder / "roofs").iterdir()  # exactly one: no temporary file is left behind
    return file


def test_a_second_call_reads_the_cache(counted: list[tuple[str, ...]], tmp_path: Path) -> None:
    first = roofs("cpu")
    assert roofs("cpu") == first
    assert counted == [DEFAULT]
    assert first.matmul_shapes == {"float32": (8, 16, 32)}
    assert _file(tmp_path).name.endswith(".json")


def test_refresh_measures_again_and_keeps_it(counted: list[tuple[str, ...]]) -> None:
    roofs("cpu")
    assert roofs("cpu", refresh=True).read_bandwidth == 2e10
    assert roofs("cpu").read_bandwidth == 2e10


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[1, 2]",
        lambda text: text.replace("read_bandwidth", "speed"),
        lambda text: text.replace("10000000000.0", "-1.0"),
        lambda text: text.replace("10000000000.0", "NaN"),
        lambda text: text.replace("10000000000.0", '"fast"'),
    ],
    ids=["cut", "empty", "list", "lacking", "negative", "nan", "text"],
)
def test_a_damaged_cache_is_measured_again(
    counted: list[tuple[str, ...]], tmp_path: Path, damage: object
) -> None:
    roofs("cpu")
    file = _file(tmp_path)
    spoiled = damage(file.read_text())  # type: ignore[operator]
    assert spoiled != file.read_text()
    file.write_text(spoiled)
    assert roofs("cpu").read_bandwidth == 2e10
    assert roofs("cpu").read_bandwidth == 2e10
    assert len(counted) == 2


def test_formats_and_threads_are_kept_apart(counted: list[tuple[str, ...]]) -> None:
    roofs("cpu")
    roofs("cpu", dtype="bf16")
    roofs("cpu", dtype=[torch.float32, "bfloat16"])
    assert counted == [DEFAULT, ("bfloat16",), ("float32", "bfloat16")]
    one, two = (roofline.cache_path(CPU, (name,)) for name in ("float32", "float16"))
    assert one != two
    assert torch.__version__.split("+")[0] in one.name


def test_an_unwritable_cache_only_warns(
    counted: list[tuple[str, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LABCORE_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="could not be kept"):
        assert roofs("cpu").read_bandwidth == 1e10


def test_the_cache_lies_where_the_system_keeps_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LABCORE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert roofline.cache_path(CPU, ("float32",)).parent == tmp_path / "labcore" / "roofs"


def test_a_real_measurement_is_positive_and_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "working_set", lambda device: 8 << 20)
    monkeypatch.setattr(measuring, "SHAPES", {"cpu": ((64, 64, 64), (128, 64, 32))})
    monkeypatch.setattr(measuring, "ROWS", (1, 8))
    found = measure_roofs(CPU, DEFAULT)
    assert set(found.matmul_flops) == set(DEFAULT)
    assert found.matmul_shapes["float32"] in ((64, 64, 64), (128, 64, 32))
    rates = (
        *found.matmul_flops.values(),
        found.read_bandwidth,
        found.copy_bandwidth,
        found.launch_overhead_s,
        *(rate for points in found.matmul_by_rows.values() for _, rate in points),
        *(rate for _, *pair in found.bandwidth_by_size for rate in pair),
    )
    assert [size for size, *_ in found.bandwidth_by_size] == [256 << 10, 1 << 20, 4 << 20]
    assert [rows for rows, _ in found.matmul_by_rows["float32"]] == [1, 8]
    assert found.host_to_device is None  # there is no link
    assert all(math.isfinite(rate) and rate > 0 for rate in rates)


def test_the_working_set_outgrows_the_cache_and_fits_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "last_level_cache_bytes", lambda: 100 << 20)
    monkeypatch.setattr(measuring, "available_memory", lambda device: 64 << 30)
    assert measuring.working_set(CPU) == 400 << 20
    monkeypatch.setattr(measuring, "available_memory", lambda device: 1 << 30)
    assert measuring.working_set(CPU) == 128 << 20
    monkeypatch.setattr(measuring, "available_memory", lambda device: 64 << 20)
    with pytest.raises(OutOfMemory, match="64 MiB are free"):
        measuring.working_set(CPU)


def test_the_public_name_is_the_function() -> None:
    import labcore

    assert labcore.perf.roofs is roofs


def test_an_unknown_format_is_refused(counted: list[tuple[str, ...]]) -> None:
    with pytest.raises(DeviceError, match="float17"):
        roofs("cpu", dtype="float17")


def test_a_disturbed_measurement_outlives_no_process(
    counted: list[tuple[str, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roofline, "_disturbed", {})
    monkeypatch.setattr(roofline.os, "cpu_count", lambda: 2)
    crowded = replace(MADE_UP, threads=2, busy_cores=1.0)
    assert crowded.disturbed
    assert not replace(crowded, busy_cores=0.1).disturbed
    assert not replace(crowded, device="cuda:0").disturbed
    monkeypatch.setattr(roofline, "measure_roofs", lambda device, dtypes: counted.append(dtypes) or crowded)
    assert roofs("cpu") == roofs("cpu") == roofline.known("cpu") == crowded
    assert len(counted) == 1
    assert not (tmp_path / "roofs").exists()


def test_what_is_known_is_told_without_measuring(counted: list[tuple[str, ...]]) -> None:
    assert roofline.known("cpu") is None
    measured = roofs("cpu")
    assert roofline.known("cpu") == measured
    assert len(counted) == 1


def test_a_format_that_is_not_multiplied_in_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise RuntimeError("no such kernel\nand a long story")

    monkeypatch.setitem(measuring._PRODUCTS, "float8", refuse)
    with pytest.raises(DeviceError, match=r"no matrices in float8 here \(no such kernel\)"):
        measuring.product(CPU, "float8", 32, 64, 64)
    assert measuring.offered(CPU, ("float8", "float32")) == ("float32",)


def test_rates_between_measured_sizes() -> None:
    points = [(1, 10.0), (100, 30.0), (10_000, 20.0)]
    assert roofline.between(points, 0.5) == 10
    assert roofline.between(points, 10) == pytest.approx(20)
    assert roofline.between(points, 1000) == pytest.approx(25)
    assert roofline.between(points, 10**9) == 20
    caches = replace(MADE_UP, bandwidth_by_size=((1 << 20, 9e10, 8e10), (1 << 30, 1e10, 9e9)))
    assert caches.read_bandwidth_at(1 << 25) == pytest.approx(5e10)
    assert MADE_UP.read_bandwidth_at(1 << 25) == 1e10


@pytest.mark.gpu
def test_a_gpu_is_measured() -> None:
    found = measure_roofs(torch.device("cuda", 0), ("bfloat16",))
    assert found.host_to_device > 1e9
    assert found.device_to_host > 1e9
    assert found.matmul_flops["bfloat16"] > 1e12
    assert found.read_bandwidth > 1e11
