"""Which cache, in one value: a kind and its settings, also as text such as "sinks:sinks=4,window=60"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from labcore.errors import ConfigError

# Short names of much used settings of one kind.
ALIASES: dict[str, tuple[str, dict[str, Any]]] = {
    "int8": ("quantized", {"bits": 8}),
    "int4": ("quantized", {"bits": 4}),
    "int2": ("quantized", {"bits": 2}),
    "fp8": ("quantized", {"bits": "fp8"}),
    "kivi4": ("quantized", {"bits": 4, "scheme": "kivi"}),
    "kivi2": ("quantized", {"bits": 2, "scheme": "kivi"}),
}


@dataclass(frozen=True)
class CacheSpec:
    """A kind of cache and its settings; whatever takes a cache's name takes one of these."""

    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> CacheSpec:
        """Read "kind" or "kind:setting=value,setting=value". Raises ConfigError when it is neither."""
        name, _, rest = text.partition(":")
        kind, settings = ALIASES.get(name.strip(), (name.strip(), {}))
        return cls(kind, settings | dict(_setting(part, text) for part in rest.split(",") if part.strip()))

    @property
    def label(self) -> str:
        """The shortest text that `parse` reads as this."""
        short, settings = self.kind, dict(self.settings)
        for alias, (kind, preset) in ALIASES.items():
            rest = {key: value for key, value in self.settings.items() if preset.get(key) != value}
            if kind == self.kind and preset.items() <= self.settings.items() and len(rest) < len(settings):
                short, settings = alias, rest
        values = ",".join(f"{key}={value}" for key, value in settings.items())
        return f"{short}:{values}" if values else short


def _setting(part: str, text: str) -> tuple[str, Any]:
    key, sign, value = (piece.strip() for piece in part.partition("="))
    if not (key and sign and value):
        raise ConfigError(
            f"The cache {text!r} has the setting {part.strip()!r}; write kind:setting=value,setting=value."
        )
    return key, _value(value)


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text
