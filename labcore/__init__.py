"""labcore: a real LLM inference engine, small enough to read, with the instruments to look inside it.

    import labcore

    model = labcore.load("story")
    for step in labcore.stream(model, "Once upon a time"):
        print(step.text, end="")

Names are resolved on first use, so that `import labcore` itself stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from labcore.openmp import compute_alone_after_fork, wait_passively

if TYPE_CHECKING:
    from labcore import catalog, errors, perf, quant
    from labcore.config import ModelConfig
    from labcore.generation import generate, logits, stream, warm_up
    from labcore.model import Model, load
    from labcore.quant import quantize

__version__ = "0.1.0"

wait_passively()  # before torch is imported, by anything of this package
compute_alone_after_fork()

_HOMES = {
    "load": "labcore.model",
    "Model": "labcore.model",
    "ModelConfig": "labcore.config",
    "generate": "labcore.generation",
    "stream": "labcore.generation",
    "logits": "labcore.generation",
    "warm_up": "labcore.generation",
    "quantize": "labcore.quant",
}
_ROOMS = ("cache", "catalog", "errors", "generation", "kernels", "lab", "model", "perf", "quant")

__all__ = [
    "Model",
    "ModelConfig",
    "__version__",
    "catalog",
    "errors",
    "generate",
    "load",
    "logits",
    "perf",
    "quant",
    "quantize",
    "stream",
    "warm_up",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _ROOMS:
        return import_module(f"labcore.{name}")
    raise AttributeError(f"module 'labcore' has no attribute {name!r}")
