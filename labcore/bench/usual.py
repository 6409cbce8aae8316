"""What is measured unless asked otherwise: a model of a size that is usual on the device, usual recipes."""

from __future__ import annotations

import torch

from labcore.perf.machine import resolve_device

MODELS = {"cpu": "shape:smollm2-135m", "cuda": "shape:llama-3.2-1b"}
RECIPES = ("int8", "int4:group=32,head=same")  # of quantized weights


def usual_model(device: str | torch.device = "auto") -> str:
    """As `labcore.load` takes it. Raises DeviceError for a device that is not here."""
    return MODELS["cuda" if resolve_device(device).type == "cuda" else "cpu"]
