"""`labcore bench all`: every benchmark of speed in one go, as rows of one kind and as each one's full result.

`--quick` runs each on sizes that take seconds; otherwise they run on their own defaults. A section that fails
is told with its reason and loses nothing of the others.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

import labcore
from labcore.bench import llama_cpp, llama_server
from labcore.bench.cache import bench_cache, shortened
from labcore.bench.generate import bench_generate
from labcore.bench.kernel_case import Sizes
from labcore.bench.kernels import bench_kernels
from labcore.bench.predict import bench_predict
from labcore.bench.prefill import bench_prefill
from labcore.bench.quant import bench_quant
from labcore.bench.serving import USUAL, bench_serving
from labcore.bench.speculate import DRAFTS, SMALL_DRAFT, bench_speculate, drafts_of
from labcore.bench.suite_rows import Row, rows_of
from labcore.bench.usual import RECIPES, usual_model
from labcore.errors import LabError
from labcore.perf.machine import resolve_device

PEERS = ("transformers", "transformers-static", "llama.cpp")
USUAL_PEERS = ("transformers", "llama.cpp")
TAKES: dict[str, tuple[str, ...]] = {
    "decode": ("transformers", "transformers-static"),
    "prefill": USUAL_PEERS,
    "quant": USUAL_PEERS,
    "serving": USUAL_PEERS,
}  # which peers a section can measure; the others stand alone
TOGETHER = 16  # sequences of a batch
CACHE_LAYERS = 4  # as of `labcore bench cache`
CACHE_ROOM = 64  # positions beyond the longest context that its steps may take
QUICK: dict[str, dict[str, Any]] = {
    "decode": {"new_tokens": 32, "repeats": 5},
    "prefill": {"tokens": (128,), "repeats": 5},
    "cache": {"specs": ("paged", "int8", "int4"), "contexts": (512,), "batches": (1,), "repeats": 5},
    "quant": {"prompt_tokens": 64, "new_tokens": 12, "batches": (1,), "repeats": 2},
    "serving": {"workloads": USUAL[-1:], "requests": 4, "batch": 4, "repeats": 1},
    "speculate": {"guesses": (4,), "prompts": 2, "new_tokens": 48, "together": 4, "repeats": 3},
    "kernels": {"sizes": Sizes(prompt=128, context=256, batch=4, many=128), "repeats": 5},
    "predict": {"contexts": (64,), "batches": (1,), "prompts": (128,), "repeats": 5},
}


@dataclass(frozen=True)
class Settings:
    """How all sections run. peers: those asked for; None: those that are here. model: None for the usual."""

    quick: bool = False
    only: tuple[str, ...] = ()
    peers: tuple[str, ...] | None = None
    model: str | None = None
    device: str = "auto"
    dtype: str = "auto"

    @property
    def place(self) -> torch.device:
        """Where it runs. Raises DeviceError where that is not."""
        return resolve_device(self.device)

    @property
    def where(self) -> dict[str, Any]:
        """The same for who loads a model itself."""
        return {"device": self.device, "dtype": self.dtype}

    @property
    def main(self) -> str:
        """What is measured."""
        return self.model or usual_model(self.device)

    @property
    def wanted(self) -> tuple[str, ...]:
        """The peers asked for, or those that are here."""
        return installed() if self.peers is None else self.peers

    def stated(self) -> dict[str, Any]:
        """What a section's numbers depend on; which sections run is no part of it."""
        return {
            "quick": self.quick, "model": self.main, "device": str(self.place), "dtype": self.dtype,
            "peers": list(self.wanted),
        }  # fmt: skip

    def sizes(self, section: str) -> dict[str, Any]:
        """Arguments of the section's benchmark."""
        return dict(QUICK[section]) if self.quick else {}


@dataclass(frozen=True)
class LeftOut:
    """A peer that a section could have measured, and why it did not."""

    section: str
    engine: str
    reason: str


@dataclass
class SuiteResult:
    """sections: each one's full results, by model, as its command would write them. seconds: it took.
    failed: why, by section. settings: of the run. complete: whether all sections that were asked for have
    ended.
    """

    quick: bool
    peers: list[str]
    settings: dict[str, Any] = field(default_factory=dict)
    complete: bool = False
    rows: list[Row] = field(default_factory=list)
    sections: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        plain = [vars(one) for one in self.left_out]
        return vars(self) | {"rows": [row.to_dict() for row in self.rows], "left_out": plain}


Progress = Callable[[str], None]


def bench_all(
    settings: Settings,
    progress: Progress = lambda _: None,
    *,
    before: SuiteResult | None = None,
    ended: Callable[[SuiteResult], None] = lambda _: None,
) -> SuiteResult:
    """Run the sections one after another. LabError for a section or a peer that there is not.

    A section's own LabError, and a device that gives out of memory, are kept in `failed`. before: what an
    earlier run of the same settings measured, which is not measured again. ended: is given what there is
    whenever a section has ended.
    """
    names = _chosen(settings.only)
    _known(settings.wanted, PEERS, "peer")
    result = before or SuiteResult(settings.quick, list(settings.wanted), settings=settings.stated())
    todo = [name for name in names if name not in result.sections]
    for name in [name for name in names if name not in todo]:
        progress(f"{name}: measured before")
    result.complete = not todo
    for number, name in enumerate(todo, start=1):
        _run(result, name, settings, progress)
        result.complete = number == len(todo)
        progress(f"{name}: ended after {result.seconds[name]:.0f} s, {number} of {len(todo)} sections")
        ended(result)
    return result


def _run(result: SuiteResult, name: str, settings: Settings, progress: Progress) -> None:
    """Measure one section into the result."""
    peers, missing = peers_of(name, settings.wanted, settings.place)
    start = time.perf_counter()
    result.failed.pop(name, None)
    try:
        results = SECTIONS[name](settings, peers, partial(_tell, progress, name))
        rows = [row for one in results.values() for row in rows_of(name, one)]
    except (LabError, torch.OutOfMemoryError) as error:
        result.failed[name] = str(error)
    else:
        result.sections[name] = results
        result.rows += rows
    result.left_out = [one for one in result.left_out if one.section != name] + missing
    result.seconds[name] = time.perf_counter() - start
    _free(settings.place)


def _tell(progress: Progress, section: str, text: str) -> None:
    progress(f"{section}: {text}")


def _chosen(only: Sequence[str]) -> list[str]:
    _known(only, SECTIONS, "section")
    return [name for name in SECTIONS if not only or name in only]


def _known(given: Sequence[str], known: Sequence[str] | dict[str, Any], what: str) -> None:
    if unknown := [name for name in given if name not in known]:
        raise LabError(f"There is no {what} {unknown[0]!r} here; choose from {', '.join(known)}.")


def _free(device: torch.device) -> None:
    """What one section's models held is there for the next one's."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


# Peers


def installed() -> tuple[str, ...]:
    """Peers that some section can measure on this computer."""
    here = {
        "transformers": _reason(_package) is None,
        "transformers-static": _reason(_package) is None and torch.cuda.is_available(),
        "llama.cpp": None in (_reason(llama_cpp.library), _reason(llama_server.binary)),
    }
    return tuple(name for name in PEERS if here[name])


def peers_of(section: str, wanted: Sequence[str], device: torch.device) -> tuple[list[str], list[LeftOut]]:
    """(those that the section will measure, those that it could have but for a reason)."""
    taken, missing = [], []
    for name in wanted:
        if name not in TAKES.get(section, ()):
            continue
        if (reason := _why_not(section, name, device)) is None:
            taken.append(name)
        else:
            missing.append(LeftOut(section, name, reason))
    return taken, missing


def _why_not(section: str, peer: str, device: torch.device) -> str | None:
    if peer == "transformers-static" and device.type != "cuda":
        return "transformers compiles the steps over its static cache on a GPU only."
    if peer.startswith("transformers"):
        return _reason(_package)
    if device.type != "cpu":
        return "llama.cpp is measured on a CPU only."
    return _reason(llama_server.binary if section == "serving" else llama_cpp.library)


def _package() -> str:
    try:
        return version("transformers")
    except PackageNotFoundError:
        raise LabError("transformers is not installed; pip install transformers.") from None


def _reason(look: Callable[[], object]) -> str | None:
    """Why something is not here; None where it is."""
    try:
        look()
    except LabError as error:
        return str(error)
    return None


# Sections: each one's results by model


Results = dict[str, dict[str, Any]]


def _load(settings: Settings, source: str | None = None) -> labcore.Model:
    return labcore.load(source or settings.main, **settings.where)


def _decode(settings: Settings, peers: list[str], progress: Progress) -> Results:
    """One sequence and several; on a CPU the embedded model too, so small that all but arithmetic shows."""
    alone = settings.model is not None or settings.place.type == "cuda"
    found = {}
    for source in [settings.main] if alone else ["story", settings.main]:
        progress(f"loading {source}")
        model = _load(settings, source)
        for batch in (1, TOGETHER) if source == settings.main else (1,):
            sizes = settings.sizes("decode") | {"batch": batch}
            result = bench_generate(model, peers, **sizes, progress=progress)
            found[source if batch == 1 else f"{source} × {batch}"] = result.to_dict()
    return found


def _prefill(settings: Settings, peers: list[str], progress: Progress) -> Results:
    sizes = settings.sizes("prefill")
    return {settings.main: bench_prefill(_load(settings), peers, **sizes, progress=progress).to_dict()}


def _cache(settings: Settings, peers: list[str], progress: Progress) -> Results:
    sizes = settings.sizes("cache")
    longest = max(sizes.get("contexts", (8192,)))
    model = shortened(_load(settings), CACHE_LAYERS, longest + CACHE_ROOM)
    return {settings.main: bench_cache(model, **sizes, progress=progress).to_dict()}


def _quant(settings: Settings, peers: list[str], progress: Progress) -> Results:
    sizes = settings.sizes("quant") | settings.where
    return {settings.main: bench_quant(settings.main, RECIPES, peers, **sizes, progress=progress)}


def _serving(settings: Settings, peers: list[str], progress: Progress) -> Results:
    """Quick: the embedded model, since whole requests of a larger one take minutes."""
    small = settings.quick and settings.model is None and settings.place.type == "cpu"
    source = "story" if small else settings.main
    sizes = settings.sizes("serving") | settings.where
    return {source: bench_serving(source, peers, **sizes, progress=progress)}


def _speculate(settings: Settings, peers: list[str], progress: Progress) -> Results:
    """The embedded model and its draft, as it is and in int8; another model looks up what it read."""
    source = settings.model or "story"
    model = _load(settings, source)
    drafts = drafts_of(model, DRAFTS.get(source), SMALL_DRAFT)
    return {source: bench_speculate(model, drafts, **settings.sizes("speculate"), progress=progress)}


def _kernels(settings: Settings, peers: list[str], progress: Progress) -> Results:
    result = bench_kernels(_load(settings), **settings.sizes("kernels"), progress=progress)
    return {settings.main: result.to_dict()}


def _predict(settings: Settings, peers: list[str], progress: Progress) -> Results:
    result = bench_predict(_load(settings), **settings.sizes("predict"), progress=progress)
    return {settings.main: result.to_dict()}


SECTIONS: dict[str, Callable[[Settings, list[str], Progress], Results]] = {
    "decode": _decode,
    "prefill": _prefill,
    "cache": _cache,
    "quant": _quant,
    "serving": _serving,
    "speculate": _speculate,
    "kernels": _kernels,
    "predict": _predict,
}
