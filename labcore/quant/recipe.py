"""What to do to a model's weights, in one line: a method, a format, and the method's own settings."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, cast

from labcore.errors import ConfigError
from labcore.quant.formats import DTYPES, FP8, Format
from labcore.quant.linear import Activations
from labcore.quant.outliers import THRESHOLD

Method = Literal["rtn", "gptq", "awq", "smoothquant", "llm_int8", "w8a8"]
METHODS = ("rtn", "gptq", "awq", "smoothquant", "llm_int8", "w8a8")
CALIBRATED = ("gptq", "awq", "smoothquant", "llm_int8")
BY_TOKEN = ("smoothquant", "llm_int8", "w8a8")
HEADS = ("auto", "same", "keep")

# Settings of a recipe beside those of its format, and what reads them from text.
_READERS: dict[str, Any] = {
    "activations": str,
    "head": str,
    "alpha": lambda text: None if text == "search" else float(text),
    "damping": float,
    "block": int,
    "act_order": lambda text: text.lower() in ("true", "1", "yes"),
    "clip": lambda text: text.lower() in ("true", "1", "yes"),
    "threshold": float,
}


@dataclass(frozen=True)
class Recipe:
    """How to quantize a model.

    method: rtn (round to nearest), gptq, awq, smoothquant, llm_int8 or w8a8. weights: the format of every
    linear layer. activations: None, or rounded to 8 bits per "token", per "tensor", or "static" (int8 only):
    to int8 with int8 weights; with fp8 weights to fp8 e4m3, so that both sides of a product are fp8.
    head: "auto" (as the weights, but at least 8 bits), "same", or "keep" (full precision); it is rounded to
    nearest, and shared with the embedding where those are tied.
    alpha: SmoothQuant's; None searches one for each layer. damping, block, act_order: GPTQ's. clip: AWQ's.
    threshold: LLM.int8()'s.
    Raises ConfigError for what does not exist or does not go together.
    """

    method: Method = "rtn"
    weights: Format = field(default_factory=Format)
    activations: Activations | None = None
    head: str = "auto"
    alpha: float | None = 0.5
    damping: float = 0.01
    block: int = 128
    act_order: bool = False
    clip: bool = True
    threshold: float = THRESHOLD

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"There is no method {self.method!r}; choose from {', '.join(METHODS)}.")
        if self.head not in HEADS:
            raise ConfigError(f"head is {self.head!r}; choose from {', '.join(HEADS)}.")
        if self.activations not in (None, "token", "tensor", "static"):
            raise ConfigError(
                f"activations is {self.activations!r}; choose token, tensor or static, or none."
            )
        if self.method in BY_TOKEN and self.activations is None:
            object.__setattr__(self, "activations", "token")
        self._check_activations()
        if self.method == "gptq" and not self.weights.is_integer:
            raise ConfigError(
                f"GPTQ rounds to integers, and {self.weights.dtype} is none; choose an int format."
            )
        if self.block < 1 or self.damping < 0:
            raise ConfigError(
                f"block is {self.block} and damping {self.damping}; take 1 or more columns, and 0 or more."
            )

    def _check_activations(self) -> None:
        """In 8 bits they go with weights in 8 bits of the same kind."""
        dtype = self.weights.dtype
        if self.method in BY_TOKEN and dtype != "int8":
            raise ConfigError(
                f"{self.method} rounds activations to int8, and those go with int8 weights, not {dtype}; "
                "choose int8, or another method."
            )
        if self.activations and dtype not in ("int8", *FP8):
            raise ConfigError(
                f"Activations in 8 bits go with int8 weights or fp8, and these are {dtype}; choose one of "
                "those, or leave activations as they are."
            )
        if self.activations == "static" and dtype != "int8":
            raise ConfigError(
                f"A static scale is measured for int8 activations, and {dtype} weights go with fp8; round "
                "activations per token or per tensor."
            )

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """From "int8", "int4:group=32", "gptq-int4:group=128,act_order=true", "smoothquant:alpha=search"…"""
        name, _, rest = text.strip().partition(":")
        settings = dict(_setting(part, text) for part in filter(None, rest.split(",")))
        own = {key: _read(key, settings.pop(key)) for key in list(settings) if key in _READERS}
        method, _, dtype = name.partition("-")
        if name in DTYPES:
            method, dtype = "rtn", name
        if method not in METHODS or (dtype and dtype not in DTYPES):
            raise ConfigError(
                f"There is no recipe {name!r}; write a format ({', '.join(DTYPES)}), a method with one "
                "(gptq-int4, awq-int3), or smoothquant, llm_int8, w8a8."
            )
        weights = Format.of(dtype or ("int4" if method in ("gptq", "awq") else "int8"), dict(settings))
        return cls(method=cast(Method, method), weights=weights, **own)

    @property
    def label(self) -> str:
        """Such as "gptq-int4:group=128", which `parse` reads."""
        plain = self.method in BY_TOKEN and self.weights == Format()
        name = self.weights.label if self.method == "rtn" else f"{self.method}-{self.weights.label}"
        own = [f"{key}={_write(value)}" for key, value in self._changed().items()]
        if plain:
            return self.method + (f":{','.join(own)}" if own else "")
        return ",".join([name, *own])

    def _changed(self) -> dict[str, Any]:
        usual = Recipe(self.method, self.weights)
        names = [f.name for f in fields(self) if f.name in _READERS]
        return {name: value for name in names if (value := getattr(self, name)) != getattr(usual, name)}

    @property
    def needs_calibration(self) -> bool:
        """Whether it must see inputs first."""
        return self.method in CALIBRATED or self.activations == "static"

    @property
    def head_format(self) -> Format | None:
        """The head's format; None: it stays as it is."""
        if self.head == "keep":
            return None
        return Format() if self.head == "auto" and self.weights.bits < 8 else self.weights

    def to_dict(self) -> dict[str, Any]:
        """Plain data, which `from_dict` reads."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Recipe:
        """What `to_dict` wrote. Raises ConfigError for anything else."""
        try:
            return cls(**{**data, "weights": Format(**data["weights"])})
        except (TypeError, KeyError) as error:
            raise ConfigError(f"This is no recipe of labcore ({error}); quantize the model again.") from None


def _setting(part: str, text: str) -> tuple[str, str]:
    key, found, value = part.partition("=")
    if not found:
        raise ConfigError(f"{part!r} in {text!r} states no value; write it as {part}=VALUE.")
    return key.strip(), value.strip()


def _read(key: str, text: str) -> Any:
    try:
        return _READERS[key](text)
    except ValueError:
        raise ConfigError(f"{key} is {text!r}; state a number.") from None


def _write(value: Any) -> str:
    return "search" if value is None else str(value).lower()
