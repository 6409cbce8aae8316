"""Which way of multiplying is quickest here, measured once and kept: by kind of numbers and number of tokens.

A layer offers the paths that give its result; among those the table picks. Without a table the order in which
a layer names them decides.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from labcore import atomic
from labcore.kernels import native
from labcore.perf.machine import cache_folder, describe
from labcore.perf.timing import synchronize

if TYPE_CHECKING:
    from labcore.quant.linear import QuantLinear

TOKENS = (1, 8, 64, 512)
SIDES = {"cpu": 1024, "cuda": 4096}  # of the square matrix that is timed: more work than starting a kernel is
REPEATS = 5


@dataclass(frozen=True)
class Timing:
    """Median seconds of one product of a square matrix.

    kind: what is multiplied, as `QuantLinear.kind` says: weights, or weights x rounded activations.
    """

    kind: str
    tokens: int
    path: str
    seconds: float


_tables: dict[str, list[Timing]] = {}


def side(device: torch.device) -> int:
    """Rows and columns of the matrix that is timed on such a device."""
    return SIDES.get(device.type, SIDES["cpu"])


def pick(kind: str, tokens: int, device: torch.device, paths: list[str]) -> str:
    """The quickest of these paths for so many tokens; the first where nothing was measured."""
    if len(paths) == 1:
        return paths[0]
    return _best(kind, _nearest(tokens), device.type, tuple(paths))


def _nearest(tokens: int) -> int:
    """The largest measured number of tokens that is not above."""
    return max((n for n in TOKENS if n <= tokens), default=TOKENS[0])


@cache
def _best(kind: str, tokens: int, device: str, paths: tuple[str, ...]) -> str:
    timed = {
        row.path: row.seconds for row in _tables.get(device, []) if (row.kind, row.tokens) == (kind, tokens)
    }
    known = [path for path in paths if path in timed]
    return min(known, key=lambda path: timed[path]) if known else paths[0]


def prepare(device: torch.device, *, fresh: bool = False) -> list[Timing]:
    """Measure this device's table, or read what was measured here before. About a second the first time."""
    if device.type in _tables and not fresh:
        return _tables[device.type]
    path = _path(device)
    table = None if fresh else _read(path)
    if table is None:
        table = measure(device)
        _write(path, table)
    _tables[device.type] = table
    _best.cache_clear()
    return table


@torch.inference_mode()
def measure(device: torch.device) -> list[Timing]:
    """Every path of each kind of layer that has one here, at every number of tokens."""
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        dtype = torch.bfloat16
    rows: dict[tuple[str, int, str], Timing] = {}
    for layer in _layers(device):
        for tokens in TOKENS:
            x = torch.randn(tokens, layer.in_features, device=device, dtype=dtype)
            for name, path in layer.paths(x).items():
                if (layer.kind, tokens, name) not in rows:
                    seconds = _seconds(path, x)
                    rows[layer.kind, tokens, name] = Timing(layer.kind, tokens, name, seconds)
    return list(rows.values())


def _layers(device: torch.device) -> list[QuantLinear]:
    """A layer of each kind; several where the paths of one kind ask for different settings."""
    from labcore.quant.formats import Format, quantize_tensor
    from labcore.quant.linear import QuantLinear

    width = side(device)
    stream = torch.Generator("cpu").manual_seed(0)
    weight = torch.randn(width, width, generator=stream, dtype=torch.float32, device="cpu").to(device)
    wholes, groups = quantize_tensor(weight, Format()), quantize_tensor(weight, Format("int4", "group", 32))
    layers = [
        QuantLinear(wholes),
        QuantLinear(wholes, activations="token"),
        QuantLinear(wholes, activations="tensor"),
        QuantLinear(groups),
    ]
    if device.type == "cuda":  # elsewhere fp8 has the definition alone, and there is nothing to choose
        fp8 = quantize_tensor(weight, Format("fp8_e4m3"))
        layers += [QuantLinear(fp8), QuantLinear(fp8, activations="token")]
    return layers


def _seconds(path: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> float:
    """The median, after a call that lays out and compiles what is needed."""
    path(x)
    synchronize(x.device)
    samples = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        path(x)
        synchronize(x.device)
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)


def _path(device: torch.device) -> Path:
    about = describe(device)
    name = f"{about.name}-{torch.__version__}-{torch.get_num_threads()}-{native.status()}"
    safe = "".join(c if c.isalnum() else "-" for c in name)[-150:]
    return cache_folder("paths") / f"{safe}.json"


def _read(path: Path) -> list[Timing] | None:
    try:
        return [Timing(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return None


def _write(path: Path, table: list[Timing]) -> None:
    with suppress(OSError):  # it is measured again next time
        atomic.write_text(path, json.dumps([asdict(row) for row in table]))
