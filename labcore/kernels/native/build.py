"""Compile the C kernels once for this processor, and load them into PyTorch's own thread pool.

The library is kept in the user's cache under a name made of its source, compiler and processor. It is linked
without an OpenMP runtime and takes the one that PyTorch has loaded: a second pool of threads would fight the
first for the cores.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch

from labcore.perf.machine import cache_folder

SOURCES = tuple(
    Path(__file__).with_name(f"{name}.c")
    for name in ("layer", "attention", "prompt_attention", "elementwise", "quantized", "threads")
)
HEADERS = tuple(
    Path(__file__).with_name(f"{name}.h")
    for name in ("attention", "dense", "exponential", "quantized", "rounding", "threads")
)
FLAGS = ("-O3", "-march=native", "-ffast-math", "-fno-finite-math-only", "-fopenmp", "-fPIC", "-std=gnu11")
SECONDS = 120


class NativeUnavailable(Exception):
    """Why the native kernels cannot be used here: no compiler, a compiler that fails, switched off."""


@cache
def library() -> ctypes.CDLL | None:
    """The loaded kernels, built first where needed; None (said once, with the reason) where that fails."""
    try:
        return _load()
    except NativeUnavailable as reason:
        warnings.warn(
            f"labcore's native CPU kernels are off: {reason} Decoding goes through PyTorch's operators, "
            "up to twice as slow for small models.",
            stacklevel=2,
        )
        return None


def functions() -> ctypes.CDLL:
    """The loaded kernels, for who has asked whether they are there. Raises NativeUnavailable if not."""
    if (loaded := library()) is None:
        raise NativeUnavailable(status())
    return loaded


def fp32(*shape: int) -> torch.Tensor:
    """Memory for the C functions to write: fp32 on the CPU, whatever PyTorch's own defaults are set to."""
    return torch.empty(*shape, dtype=torch.float32, device="cpu")


def status() -> str:
    """One phrase for `labcore doctor`."""
    try:
        return f"native CPU kernels ready ({_load()._name})"
    except NativeUnavailable as reason:
        return f"native CPU kernels off: {reason}"


@cache
def _load() -> ctypes.CDLL:
    if os.environ.get("LABCORE_NATIVE", "1") == "0":
        raise NativeUnavailable("LABCORE_NATIVE=0 is set.")
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None:
        raise NativeUnavailable(
            "no C compiler (cc, gcc, clang) was found; install one, such as Debian's gcc."
        )
    path = cache_folder("native") / f"labcore-{_fingerprint(compiler)}.so"
    if not path.exists():
        _compile(compiler, path)
    _share_openmp()
    try:
        return _typed(ctypes.CDLL(str(path)))
    except OSError as error:
        path.unlink(missing_ok=True)  # damaged or of another system: the next start builds it again
        raise NativeUnavailable(f"the built library does not load ({error}).") from None


def _typed(lib: ctypes.CDLL) -> ctypes.CDLL:
    """State the arguments once, so that calls may pass plain numbers."""
    at: Any = ctypes.c_void_p
    number: Any = ctypes.c_int
    stride: Any = ctypes.c_long
    lib.labcore_before_attention.argtypes = [at] * 4 + [number, at, at, stride, number, number]
    lib.labcore_after_attention.argtypes = [at] * 4 + [stride, number, number]
    lib.labcore_head.argtypes = [at] * 4 + [stride, number, number]
    lib.labcore_quantized_rows.argtypes = [at] * 3 + [number]
    lib.labcore_quantized_linear.argtypes = [at] * 4 + [number, number]
    lib.labcore_layers.argtypes = [at] * 5 + [number, at, at, stride, number]
    lib.labcore_greedy.argtypes = [at, at, number, number, number]
    lib.labcore_decode_attention.argtypes = [at, number]
    lib.labcore_prompt_attention.argtypes = [at, number]
    lib.labcore_swiglu.argtypes = [at, at, stride, stride, number]
    for name in (
        "before_attention",
        "after_attention",
        "layers",
        "greedy",
        "head",
        "decode_attention",
        "prompt_attention",
        "swiglu",
        "quantized_linear",
        "quantized_rows",
    ):
        getattr(lib, f"labcore_{name}").restype = None
    return lib


def _compile(compiler: str, path: Path) -> None:
    """Build beside the target and move it there, so that no half-written library is ever loaded."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            library_ = Path(folder) / "labcore.so"
            objects = [str(Path(folder) / f"{source.stem}.o") for source in SOURCES]
            for source, object_ in zip(SOURCES, objects, strict=True):
                _run([compiler, *FLAGS, "-c", str(source), "-o", object_])
            _run([compiler, "-shared", *objects, "-lm", "-o", str(library_)])
            library_.replace(path)
    except OSError as error:
        raise NativeUnavailable(f"the library cannot be written ({error}).") from None


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise NativeUnavailable(f"{command[0]} took longer than {SECONDS} s.") from None
    if done.returncode:
        first = next(iter(done.stderr.strip().splitlines()), f"exit code {done.returncode}")
        raise NativeUnavailable(f"{command[0]} failed ({first}).")


def _fingerprint(compiler: str) -> str:
    """Changes with the source, the flags, the compiler and the processor that -march=native means."""
    processor = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        processor += platform.processor()
    sources = [source.read_text(encoding="utf-8") for source in (*SOURCES, *HEADERS)]
    parts = (*sources, *FLAGS, os.path.realpath(compiler), processor)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _share_openmp() -> None:
    """Make the symbols of the OpenMP runtime that PyTorch uses visible to a library linked without one."""
    torch.get_num_threads()  # loads it, if it was not yet
    try:
        mapped = {
            line.split()[-1] for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        }
    except OSError:
        mapped = set()
    names = ("libgomp", "libiomp", "libomp")
    for path in sorted(mapped):
        if Path(path).name.startswith(names):
            ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
