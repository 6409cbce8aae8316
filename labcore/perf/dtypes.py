"""Names and sizes of number formats, in one spelling: PyTorch's."""

from __future__ import annotations

from collections.abc import Mapping

from labcore.errors import ConfigError, DeviceError

# Bytes an element takes. int4 is two to a byte; scales of quantized formats are counted where they are made.
BYTES: dict[str, float] = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8": 1,
    "int8": 1,
    "int4": 0.5,
}
_ALIASES = {
    "fp64": "float64",
    "double": "float64",
    "fp32": "float32",
    "float": "float32",
    "fp16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "fp8": "float8",
    "float8_e4m3fn": "float8",
    "float8_e5m2": "float8",
}
# What activations may be rounded to, and the weights that are multiplied by such.
_WITH = {"int8": ("int8", "int4"), "int4": ("int4",), "float8": ("float8",)}
# Where a device states no rate for a format, the format it computes in instead: what both sides of a product
# are widened to. `product_dtype` says which format a product asks for.
_COMPUTED_IN = {
    "int4": ("float16", "bfloat16", "float32"),
    "int8": ("float16", "bfloat16", "float32"),
    "float8": ("float16", "bfloat16", "float32"),
    "float16": ("bfloat16", "float32"),
    "bfloat16": ("float32",),
}


def canonical(dtype: object) -> str:
    """PyTorch's name of a dtype given as a name ("fp16", "bfloat16") or as a torch.dtype.

    Raises DeviceError for a format that labcore does not know.
    """
    name = str(dtype).lower().removeprefix("torch.")
    name = _ALIASES.get(name, name)
    if name not in BYTES:
        raise DeviceError(
            f"There is no number format called {str(dtype)!r} here; use one of {', '.join(BYTES)}."
        )
    return name


def bytes_per_element(dtype: object) -> float:
    """Bytes an element of this dtype takes (0.5 for int4)."""
    return BYTES[canonical(dtype)]


def activation_dtype(weights: object) -> str:
    """The format of activations, and of the cache unless it has its own, beside weights stored so: theirs, or
    float16 where weights are narrower."""
    return canonical(weights) if bytes_per_element(weights) >= 2 else "float16"


def product_dtype(weights: object, activations: object | None = None) -> str:
    """The format in which weights stored so are multiplied: the one place that decides it.

    Weights alone in 8 or 4 bits (int8, int4, nf4, GPTQ, AWQ, fp8) become 16-bit numbers on their way to the
    arithmetic units: they save bytes and no FLOP. Only where activations are rounded too (w8a8, SmoothQuant,
    LLM.int8(), fp8 on both sides) both sides are narrow, and the product is computed in the activations'
    format. activations: that format, int8, int4 or float8; None: they are not rounded.
    Raises ConfigError for two sides that are not multiplied by each other, DeviceError for an unknown format.
    """
    if activations is None:
        return activation_dtype(weights)
    name, stored = canonical(activations), canonical(weights)
    if stored not in _WITH.get(name, ()):
        choices = ", ".join(f"{one} with {' or '.join(_WITH[one])}" for one in _WITH)
        raise ConfigError(
            f"Activations in {name} are not multiplied by weights in {stored}, but {choices}; choose such a "
            "pair, or leave activations as they are."
        )
    return name


def format_for(dtype: object, rates: Mapping[str, float]) -> str:
    """The format that a dtype would be computed in on a device with these rates.

    Raises DeviceError when the device states no rate that fits (bfloat16 rates do not stand in for float32).
    """
    name = canonical(dtype)
    for candidate in (name, *_COMPUTED_IN.get(name, ())):
        if candidate in rates:
            return candidate
    raise DeviceError(f"No {name} rate is known for this device, only {', '.join(rates) or 'none at all'}.")


def rate_for(dtype: object, rates: Mapping[str, float]) -> float:
    """FLOP/s of a dtype on a device with these rates, in the format it would compute in; errors as there."""
    return rates[format_for(dtype, rates)]
