"""What a model is placed on and held in, made definite; and memory asked for before it is taken."""

from __future__ import annotations

import torch
from torch import Tensor

from labcore.errors import DeviceError, OutOfMemory
from labcore.perf import pages
from labcore.perf.machine import available_memory, resolve_device, within_budget

__all__ = ["DTYPES", "allocate", "ensure_fits", "resolve_device", "resolve_dtype"]

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype meant. "auto" is fp32 on a CPU, and on a GPU bf16 where it has it, else fp16.

    Raises DeviceError for a dtype that weights cannot be held in here.
    """
    if dtype == "auto":
        return _natural_dtype(device)
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found is None or found not in DTYPES.values():
        raise DeviceError(f"There is no dtype {str(dtype)!r} here; use auto, float32, bfloat16 or float16.")
    return found


def _natural_dtype(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        # Before Ampere bf16 is emulated, which PyTorch would count as support.
        native = torch.cuda.get_device_capability(device) >= (8, 0) or torch.version.hip is not None
        return torch.bfloat16 if native else torch.float16
    return torch.float16 if device.type == "mps" else torch.float32


def ensure_fits(numbers: int, dtype: torch.dtype, device: torch.device, name: str) -> None:
    """Refuse so many weights of model `name` if they exceed what is free, by raising OutOfMemory."""
    needed, free = numbers * dtype.itemsize, available_memory(device)
    if needed > free:
        narrower = "load it with dtype='bfloat16', or " if dtype.itemsize > 2 and needed / 2 <= free else ""
        raise OutOfMemory(
            f"The {numbers / 1e9:.3g} billion weights of {name} in {str(dtype).removeprefix('torch.')} need "
            f"{needed / 1e9:.3g} GB and {device} has {free / 1e9:.3g} GB{within_budget(device)} free; "
            f"{narrower}take a smaller model or another device."
        )


def ensure_bytes_fit(needed: int, device: torch.device, name: str) -> None:
    """Refuse weights of so many bytes, as they are stored, if they exceed what is free (OutOfMemory)."""
    if needed > (free := available_memory(device)):
        raise OutOfMemory(
            f"The weights of {name} have {needed / 1e9:.3g} GB and {device} has {free / 1e9:.3g} GB"
            f"{within_budget(device)} free; take a smaller model or another device."
        )


def allocate(shape: torch.Size, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Memory, unset. Raises OutOfMemory where another program took, meanwhile, what was counted as free."""
    try:
        if device.type == "cpu":
            return pages.empty(shape, dtype)
        return torch.empty(shape, device=device, dtype=dtype)
    except (RuntimeError, OSError) as error:  # CUDA's OutOfMemoryError is a RuntimeError
        raise OutOfMemory(
            f"{device} gave out while taking memory for weights {list(shape)}, with "
            f"{available_memory(device) / 1e9:.3g} GB{within_budget(device)} free; "
            "close other programs that use it and try again."
        ) from error
