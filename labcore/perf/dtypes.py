"""Names and sizes of number formats, in one spelling: PyTorch's."""

from __future__ import annotations

from collections.abc import Mapping

from labcore.errors import DeviceError

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
# Where a device states no rate for a format, the format it computes in instead. Weights of 8 and 4 bits are
# then only stored narrow and multiplied in 16 bits; 16-bit numbers are multiplied in 32.
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
