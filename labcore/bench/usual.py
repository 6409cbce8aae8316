"""What is measured unless asked otherwise: a model of usual size for the device, recipes, prompts."""

from __future__ import annotations

import torch

from labcore.model import Model
from labcore.perf.machine import resolve_device

MODELS = {"cpu": "shape:smollm2-135m", "cuda": "shape:llama-3.2-1b"}
RECIPES = ("int8", "int4:group=32,head=same")  # of quantized weights


def random_prompt(model: Model, length: int, seed: int = 0) -> list[int]:
    """Random tokens: the speed of a dense model does not depend on them, and every model has them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, model.config.vocab_size, (length,), generator=generator).tolist()


def usual_model(device: str | torch.device = "auto") -> str:
    """As `labcore.load` takes it. Raises DeviceError for a device that is not here."""
    return MODELS["cuda" if resolve_device(device).type == "cuda" else "cpu"]
