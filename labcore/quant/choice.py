"""Which way of multiplying is quickest here, measured once and kept: by bits and by number of tokens.

A layer offers the paths that give its result; among those the table picks. Without a table the order in which
a layer names them decides.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch

from labcore.kernels import native
from labcore.perf.machine import cache_folder, describe
from labcore.perf.timing import synchronize

TOKENS = (1, 8, 64, 512)
SIDE = 1024  # of the square matrix that is timed
REPEATS = 5


@dataclass(frozen=True)
class Timing:
    """Median seconds of one product of a 1024 x 1024 matrix."""

    bits: int
    tokens: int
    path: str
    seconds: float


_tables: dict[str, list[Timing]] = {}


def pick(bits: int, tokens: int, device: torch.device, paths: list[str]) -> str:
    """The quickest of these paths for so many tokens; the first where nothing was measured."""
    if len(paths) == 1:
        return paths[0]
    return _best(bits, _nearest(tokens), device.type, tuple(paths))


def _nearest(tokens: int) -> int:
    """The largest measured number of tokens that is not above."""
    return max((n for n in TOKENS if n <= tokens), default=TOKENS[0])


@cache
def _best(bits: int, tokens: int, device: str, paths: tuple[str, ...]) -> str:
    timed = {
        row.path: row.seconds for row in _tables.get(device, []) if (row.bits, row.tokens) == (bits, tokens)
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
    """Every path of an int8 and an int4 layer at every number of tokens."""
    from labcore.quant.formats import Format, quantize_tensor
    from labcore.quant.linear import QuantLinear

    weight = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(0)).to(device)
    layers = [
        QuantLinear(quantize_tensor(weight, Format("int8", "channel"))),
        QuantLinear(quantize_tensor(weight, Format("int8", "channel")), activations="tensor"),
        QuantLinear(quantize_tensor(weight, Format("int4", "group", 32))),
    ]
    rows: dict[tuple[int, int, str], Timing] = {}
    for layer in layers:
        for tokens in TOKENS:
            x = torch.randn(tokens, SIDE, device=device)
            for name, path in layer.paths(x).items():
                synchronize(device)
                path(x)
                samples = []
                for _ in range(REPEATS):
                    start = time.perf_counter()
                    path(x)
                    synchronize(device)
                    samples.append(time.perf_counter() - start)
                found = Timing(layer.format.bits, tokens, name, statistics.median(samples))
                rows.setdefault((found.bits, found.tokens, found.path), found)
    return list(rows.values())


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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        part.write_text(json.dumps([asdict(row) for row in table]), encoding="utf-8")
        part.replace(path)
    except OSError:
        pass  # it is measured again next time
