"""The machine's description: memory within control groups, devices that are and are not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from labcore.errors import DeviceError
from labcore.perf import machine

GIB = 1 << 30


def _group(folder: Path, limit: str, used: int, reclaimable: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {reclaimable}\n")


def test_version_2_groups_are_read_up_to_the_root(tmp_path: Path) -> None:
    _group(tmp_path / "jobs", str(4 * GIB), 3 * GIB, reclaimable=GIB)
    _group(tmp_path / "jobs" / "mine", str(2 * GIB), GIB)
    (tmp_path / "membership").write_text("0::/jobs/mine\n")
    found = machine._cgroup_limits(tmp_path, str(tmp_path / "membership"))
    assert found == [(2 * GIB, GIB), (4 * GIB, 2 * GIB)]


def test_a_container_sees_its_own_group_at_the_root(tmp_path: Path) -> None:
    _group(tmp_path, str(GIB), 100)
    (tmp_path / "membership").write_text("0::/a/path/of/the/host\n")
    assert machine._cgroup_limits(tmp_path, str(tmp_path / "membership")) == [(GIB, 100)]


def test_version_1_groups(tmp_path: Path) -> None:
    group = tmp_path / "memory" / "mine"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text(str(GIB))
    (group / "memory.usage_in_bytes").write_text("1000")
    (group / "memory.stat").write_text("total_inactive_file 400\n")
    (tmp_path / "membership").write_text("3:cpu:/mine\n5:memory:/mine\n")
    assert machine._cgroup_limits(tmp_path, str(tmp_path / "membership")) == [(GIB, 600)]


def test_no_limit_is_no_limit(tmp_path: Path) -> None:
    _group(tmp_path, "max", 100)
    (tmp_path / "membership").write_text("0::/\n")
    assert machine._cgroup_limits(tmp_path, str(tmp_path / "membership")) == []


def test_the_tightest_limit_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_meminfo", {"MemTotal": 64 * GIB, "MemAvailable": 50 * GIB}.get)
    monkeypatch.setattr(machine, "_cgroup_limits", lambda: [(8 * GIB, 3 * GIB), (16 * GIB, 15 * GIB)])
    assert machine.total_memory("cpu") == 8 * GIB
    assert machine.available_memory("cpu") == GIB
    monkeypatch.setattr(machine, "_cgroup_limits", lambda: [(GIB, 2 * GIB)])
    assert machine.available_memory("cpu") == 0


def test_this_machine_is_described() -> None:
    found = machine.describe("cpu")
    assert found.device == "cpu"
    assert found.name
    assert 0 < found.available_memory <= found.total_memory
    assert found.threads == torch.get_num_threads()
    assert found.to_dict()["torch_version"] == torch.__version__


def test_the_kernels_estimate_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "MemTotal:  2048 kB\nMemFree:  512 kB\nMemAvailable:  1024 kB\n"
    monkeypatch.setattr(machine, "_read", lambda path: text if path == "/proc/meminfo" else "")
    assert machine.total_memory("cpu") == 2048 * 1024
    assert machine.available_memory("cpu") == 1024 * 1024


def test_devices_that_are_not_there() -> None:
    with pytest.raises(DeviceError, match="no device 'gpu'"):
        machine.resolve_device("gpu")
    with pytest.raises(DeviceError, match="cuda:99 was asked for"):
        machine.resolve_device("cuda:99")
    with pytest.raises(DeviceError, match="does not run on 'meta'"):
        machine.resolve_device("meta")
    assert machine.resolve_device("cpu") == torch.device("cpu")


def test_auto_prefers_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert machine.resolve_device("auto").type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine.resolve_device("auto").type == "cpu"


def test_neighbours_are_counted_without_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = machine.os.sysconf("SC_CLK_TCK")
    clock = {"wall": 0.0, "busy": 0.0}
    own = [0.0]
    monkeypatch.setattr(machine.time, "perf_counter", lambda: clock["wall"])
    monkeypatch.setattr(machine.os, "times", lambda: machine.os.times_result((own[0], 0.0, 0.0, 0.0, 0.0)))
    monkeypatch.setattr(
        machine, "_read", lambda path: f"cpu  {int(clock['busy'] * ticks)} 0 0 900 7 0 0 0 5 0\n"
    )
    neighbours = machine.Neighbours()
    clock.update(wall=2.0, busy=5.0)
    own[0] = 2.0
    assert neighbours.busy_cores() == pytest.approx(1.5)  # 5 core-seconds busy, 2 of them ours, in 2 seconds
    monkeypatch.setattr(machine, "_read", lambda path: "")
    assert machine.Neighbours().busy_cores() == 0.0
