"""What a machine does at best, as the predictor sees it: a catalogue's row or this computer as measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from labcore.catalog import GPU
from labcore.perf.dtypes import canonical, format_for, product_dtype
from labcore.perf.roofline import Roofs, between


@dataclass(frozen=True)
class Machine:
    """Two roofs and a memory: rates in FLOP/s by dtype, bandwidth in bytes/s, memory in bytes.

    measured: the rates were achieved on this computer, not taken from a data sheet. by_rows: (rows, FLOP/s)
    of products with so few rows, where that was measured. host_bandwidth: bytes/s from the host's memory.
    activation_dtype: what its kernels round activations to beside integer weights, whatever the recipe;
    None: nothing.
    """

    name: str
    memory_bytes: int
    bandwidth: float
    rates: Mapping[str, float] = field(default_factory=dict)
    usd_per_hour: float | None = None
    measured: bool = False
    by_rows: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    host_bandwidth: float | None = None
    activation_dtype: str | None = None

    def product_dtype(self, weights: object, activations: object | None = None) -> str:
        """The format in which weights stored so are multiplied here; see `dtypes.product_dtype`."""
        if activations is None and canonical(weights) in ("int8", "int4"):
            activations = self.activation_dtype
        return product_dtype(weights, activations)

    def flops(self, dtype: object = "float16", rows: int | None = None) -> float:
        """FLOP/s of products in a dtype, with so many rows (default: as many as it takes).

        Of weights that are stored in a dtype ask `product_dtype` first what they are multiplied in.

        Raises DeviceError when the machine states no rate that fits.
        """
        name = format_for(dtype, self.rates)
        if rows is None or not self.by_rows.get(name):
            return self.rates[name]
        points = [*self.by_rows[name], (2 * self.by_rows[name][-1][0], self.rates[name])]
        return min(self.rates[name], between(points, rows))

    def ridge(self, dtype: object = "float16") -> float:
        """FLOP/byte at which compute and memory take equally long."""
        return self.flops(dtype) / self.bandwidth

    def times(self, devices: int) -> Machine:
        """So many of them as one: memory, bandwidth, rates and price multiplied, communication left out."""
        return replace(
            self,
            name=f"{devices} x {self.name}",
            memory_bytes=self.memory_bytes * devices,
            bandwidth=self.bandwidth * devices,
            rates={dtype: rate * devices for dtype, rate in self.rates.items()},
            by_rows={},
            usd_per_hour=None if self.usd_per_hour is None else self.usd_per_hour * devices,
        )


def machine_from_gpu(gpu: GPU) -> Machine:
    """A catalogued device at its data sheet's peak rates."""
    return Machine(gpu.title, gpu.memory_bytes, gpu.bandwidth, dict(gpu.flops), gpu.usd_per_hour)


def machine_from_roofs(roofs: Roofs, memory_bytes: int, usd_per_hour: float | None = None) -> Machine:
    """This computer at its measured rates; memory_bytes is what a model may use of it.

    On a CPU labcore's kernels multiply integers: they round activations to 8 bits, by whatever integer
    weights these go.
    """
    return Machine(
        name=roofs.device_name,
        memory_bytes=memory_bytes,
        bandwidth=roofs.read_bandwidth,
        rates=dict(roofs.matmul_flops),
        usd_per_hour=usd_per_hour,
        measured=True,
        by_rows=dict(roofs.matmul_by_rows),
        host_bandwidth=roofs.host_to_device,
        activation_dtype="int8" if roofs.device == "cpu" else None,
    )


def as_machine(machine: Machine | GPU) -> Machine:
    """A Machine from either kind of description."""
    return machine_from_gpu(machine) if isinstance(machine, GPU) else machine
