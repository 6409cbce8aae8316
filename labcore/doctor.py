"""What this machine has, what is missing, and what will be slow and why.

Each check looks at one thing and returns findings of three levels: "ok"; "slow" (everything works, something
takes longer than it could, and the note says why); "problem" (the lab does not work until it is mended).
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.table import Table

import labcore
from labcore import catalog
from labcore.errors import LabError
from labcore.kernels import native
from labcore.openmp import wait_policy
from labcore.perf.machine import Neighbours, budget, describe, resolve_device, usable_cores
from labcore.quant import choice

Level = Literal["ok", "slow", "problem"]
_COLOURS: dict[Level, str] = {"ok": "green", "slow": "yellow", "problem": "red"}

ENGINE_PACKAGES = ("torch", "numpy", "tokenizers", "safetensors")
LAB_PACKAGES = ("jupyterlab", "ipykernel", "ipywidgets", "plotly", "papermill", "nbconvert", "tqdm")

# Ways to multiply by quantized weights, as `doctor --kernels` explains them.
_PATHS = {
    "native": "native: labcore's C kernels.",
    "torch": "torch: PyTorch's dynamic int8 linear (one scale for all activations).",
    "int8": "int8: both sides in int8 through torch._int_mm.",
    "fp8": "fp8: both sides in fp8 through torch._scaled_mm.",
    "triton": "triton: labcore's kernels on weights alone.",
    "reference": "reference: weights read back, full-precision product.",
}

# The two embedded models in memory, a kernel with torch, and JupyterLab.
NEEDED_MEMORY = 2 * 2**30
# Room for executed lessons and results; models of the Hub bring their own size.
NEEDED_DISK = 2**30

# How long the cores' other users are looked at, and the share of all cores that is called a load.
LOAD_SECONDS = 0.25
BUSY_SHARE = 0.25


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    subject: str
    value: str
    level: Level = "ok"
    note: str = ""


def examine(device: str = "auto") -> list[Finding]:
    """All findings about this machine. Raises DeviceError for a device that it does not have."""
    found = resolve_device(device)
    return [
        *_versions(),
        *_packages(),
        *_kernel(),
        *_devices(found),
        *_threads(found),
        *_waiting(),
        *_load(),
        *_memory(found),
        *_disk(),
        *_attention(found),
        *_compiler(),
        *_native(found),
        *_models(),
    ]


def report(findings: list[Finding]) -> Table:
    """The findings as a table, with a closing line that counts what is not ok."""
    problems = sum(finding.level == "problem" for finding in findings)
    slow = sum(finding.level == "slow" for finding in findings)
    verdict = (
        f"{problems} to mend before the lab works" if problems else "everything that the lab needs is here"
    )
    caption = f"labcore doctor: {verdict}; {slow} slower than it could be."
    table = Table(caption=caption, caption_justify="left", show_header=False, pad_edge=False)
    table.add_column("subject", style="bold", no_wrap=True)
    table.add_column("level")
    table.add_column("finding", overflow="fold")
    for finding in findings:
        colour = _COLOURS[finding.level]
        text = f"{finding.value}\n[dim]{finding.note}[/dim]" if finding.note else finding.value
        table.add_row(finding.subject, f"[{colour}]{finding.level}[/{colour}]", text)
    return table


def _versions() -> Iterator[Finding]:
    where = f"{platform.system()} {platform.machine()}"
    yield Finding("python", f"{platform.python_version()} on {where}")
    yield Finding("labcore", f"{labcore.__version__} in {Path(labcore.__file__).parent}")


def _packages() -> Iterator[Finding]:
    for subject, names in (("engine", ENGINE_PACKAGES), ("lab", LAB_PACKAGES)):
        have = {name: _version(name) for name in names}
        missing = [name for name, version in have.items() if version is None]
        value = ", ".join(f"{name} {version}" for name, version in have.items() if version)
        if missing:
            note = f"missing: {', '.join(missing)}; install with: pip install 'labcore[lab]'"
            yield Finding(subject, value, "problem", note)
        else:
            yield Finding(subject, value)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _kernel() -> Iterator[Finding]:
    """The lessons ask for the kernel `python3`; it must be this interpreter, with this labcore."""
    try:
        from jupyter_client.kernelspec import KernelSpecManager
    except ModuleNotFoundError:
        return  # reported as a missing package already
    spec = KernelSpecManager().get_kernel_spec("python3")
    program = spec.argv[0]
    if program in ("python", "python3", sys.executable) or os.path.realpath(program) == os.path.realpath(
        sys.executable
    ):
        yield Finding("kernel", f"python3 is {sys.executable}")
    else:
        note = f"remove {spec.resource_dir}, or run: python -m ipykernel install --sys-prefix"
        yield Finding("kernel", f"python3 starts {program}, not this interpreter", "problem", note)


def _devices(device: torch.device) -> Iterator[Finding]:
    about = describe(device)
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        level: Level = "ok" if major >= 8 else "slow"
        note = "" if major >= 8 else "before compute capability 8.0 there is no fast bfloat16; fp16 is used"
        value = f"{about.name}, compute capability {major}.{minor}, CUDA {about.cuda_version}"
        yield Finding("device", value, level, note)
    else:
        features = f", {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else ""
        yield Finding("device", f"{about.name} ({device.type}{features})", *_why_no_gpu(device))
    if device.type == "cpu" and not _fast_bfloat16():
        note = "16-bit weights halve the memory and are slower than float32 here; dtype='auto' takes float32"
        yield Finding("16-bit", "this CPU has no 16-bit matrix instructions", "slow", note)


def _why_no_gpu(device: torch.device) -> tuple[Level, str]:
    if device.type == "mps" or torch.cuda.is_available():
        return "ok", ""
    if shutil.which("nvidia-smi") and not torch.version.cuda:
        return "slow", "there is an NVIDIA GPU, but this torch is a CPU build; install a CUDA build"
    if shutil.which("nvidia-smi"):
        return "slow", "there is an NVIDIA GPU, but torch cannot use it; check the driver with nvidia-smi"
    return "slow", "no GPU: the embedded models run well; models above about 1 GB of weights will be slow"


def _fast_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 matrices itself (AVX512-BF16, AMX, or Arm's BF16 extension)."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return platform.machine() == "arm64"  # Apple silicon
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16", "bf16"))


def _threads(device: torch.device) -> Iterator[Finding]:
    cores, threads = usable_cores(), torch.get_num_threads()
    value = f"{threads} for {cores} cores this process may use"
    if threads < cores and "OMP_NUM_THREADS" in os.environ:
        held = f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']} holds torch back"
        note = f"{held}; unset it, unless others compute here too"
        yield Finding("threads", value, "slow", note)
    elif threads > cores:
        note = f"more threads than cores take turns; set OMP_NUM_THREADS={cores}"
        yield Finding("threads", value, "slow", note)
    elif cores == 1 and device.type == "cpu":
        yield Finding("threads", value, "slow", "one core runs both the kernel and JupyterLab")
    else:
        yield Finding("threads", value)


def _waiting() -> Iterator[Finding]:
    """Whether OpenMP's threads sleep while they wait, or keep the cores that others compute on."""
    policy = wait_policy()
    if policy and os.environ.get("OMP_WAIT_POLICY", "").lower() != "active":
        yield Finding("waiting threads", policy)
        return
    note = "where other programs use the cores too they slow each other down, up to 30 times; "
    if policy:
        yield Finding("waiting threads", policy, "slow", note + "unset OMP_WAIT_POLICY, or set passive")
    else:
        mend = "import labcore before torch, or set OMP_WAIT_POLICY=passive"
        yield Finding("waiting threads", "spin for milliseconds", "slow", note + mend)


def _load() -> Iterator[Finding]:
    """Cores that other programs keep busy right now."""
    others = Neighbours()
    time.sleep(LOAD_SECONDS)
    busy, cores = others.busy_cores(), usable_cores()
    value = f"other programs use {busy:.1f} of {cores} cores"
    if busy < BUSY_SHARE * cores:
        yield Finding("load", value)
    else:
        yield Finding("load", value, "slow", "measurements share the cores with them; close what you can")


def _memory(device: torch.device) -> Iterator[Finding]:
    for subject, place in {"memory": torch.device("cpu"), f"memory of {device}": device}.items():
        if subject != "memory" and device.type == "cpu":
            continue
        about = describe(place)
        value = f"{about.available_memory / 2**30:.1f} GiB free of {about.total_memory / 2**30:.1f} GiB"
        if mine := budget(place):
            value += f", which {mine.source} allows"
        if about.available_memory < NEEDED_MEMORY:
            mend = f"ask for more, or raise {mine.source}" if mine else "close other programs"
            note = f"a lesson takes up to {NEEDED_MEMORY / 2**30:.0f} GiB; {mend}"
            yield Finding(subject, value, "problem" if place.type == "cpu" else "slow", note)
        else:
            yield Finding(subject, value)


def _disk() -> Iterator[Finding]:
    free = shutil.disk_usage(Path.cwd()).free
    value = f"{free / 1e9:.1f} GB free in {Path.cwd()}"
    if free < NEEDED_DISK:
        yield Finding("disk", value, "problem", f"lessons and results need {NEEDED_DISK / 1e9:.0f} GB")
    else:
        yield Finding("disk", value)


def _attention(device: torch.device) -> Iterator[Finding]:
    """Attention goes through torch's scaled_dot_product_attention; name what may run behind it here."""
    if device.type == "cuda":
        cuda = torch.backends.cuda
        on = {"flash": cuda.flash_sdp_enabled(), "memory-efficient": cuda.mem_efficient_sdp_enabled()}
        on |= {"cuDNN": cuda.cudnn_sdp_enabled(), "plain": cuda.math_sdp_enabled()}
        used = ", ".join(name for name, enabled in on.items() if enabled)
        yield Finding("attention", f"torch's fused attention: {used}")
    else:
        yield Finding("attention", f"torch's fused attention ({device.type})")
    if device.type == "cpu":
        matmul = "oneDNN (MKL-DNN)" if torch.backends.mkldnn.is_available() else "plain loops"
        blas = "MKL" if torch.backends.mkl.is_available() else "the BLAS that torch was built with"
        yield Finding("matmul", f"{blas}, {matmul}")


def _compiler() -> Iterator[Finding]:
    """Our own CPU kernels are compiled on this machine, for this processor."""
    found = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if found:
        yield Finding("compiler", found)
    else:
        note = "without one PyTorch's kernels do all; on Debian: apt-get install gcc libc6-dev"
        yield Finding("compiler", "no C compiler", "slow", note)


def _native(device: torch.device) -> Iterator[Finding]:
    """Our own C kernels, which decode steps on a CPU go through; built here if they were not yet."""
    if device.type == "cpu":
        state = native.status()
        level: Level = "ok" if native.available() else "slow"
        yield Finding("kernels", state, level, "" if level == "ok" else "decode steps on the CPU take longer")


def paths_report(device: str = "auto") -> Table:
    """Every way to multiply by quantized weights here, measured now; the quickest of each row is marked."""
    found = resolve_device(device)
    timings = choice.prepare(found, fresh=True)
    names = list(dict.fromkeys(timing.path for timing in timings))
    side, said = choice.side(found), [_PATHS[name] for name in names if name in _PATHS]
    table = Table(
        title=f"A {side} × {side} matrix on {describe(found).name}, microseconds a product",
        caption="\n".join([*said, "a x b: activations are rounded to b first. * the quickest."]),
        caption_justify="left",
    )
    for name in ("weights", "tokens", *names):
        table.add_column(name, justify="right")
    for kind, tokens in dict.fromkeys((timing.kind, timing.tokens) for timing in timings):
        times = {t.path: t.seconds for t in timings if (t.kind, t.tokens) == (kind, tokens)}
        best = min(times, key=lambda name: times[name])
        cells = [
            f"{times[name] * 1e6:,.0f}{' *' if name == best else ''}" if name in times else "–"
            for name in names
        ]
        table.add_row(kind, str(tokens), *cells)
    return table


def _models() -> Iterator[Finding]:
    """Lessons need the story model; its draft is for speculative decoding alone."""
    needed: dict[str, Level] = {"story": "problem", "story-draft": "slow"}
    for name, level in needed.items():
        try:
            folder = catalog.embedded(name)
        except LabError as error:
            yield Finding("model", name, level, str(error))
        else:
            size = sum(file.stat().st_size for file in folder.iterdir())
            yield Finding("model", f"{name}, {size / 1e6:.1f} MB in {folder}")
