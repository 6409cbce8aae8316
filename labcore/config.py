"""The shape of a model, in Hugging Face's field names.

`ModelConfig.from_dict` reads the `config.json` of Llama, Mistral, Qwen2 and Qwen3 checkpoints in both
spellings of the rotary settings: the old (`rope_theta`, `rope_scaling`) and the new (`rope_parameters`).
What those families differ in (biases, norms on queries and keys, an explicit head size, a tied head)
is a field here, so that one Transformer serves them all.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from labcore.errors import ConfigError
from labcore.json_file import read_object
from labcore.shapes import Experts, Latent

# Beyond any model: what exceeds these is damage or a trap, and is refused before anything is built from it.
MOST_LAYERS = 2048
LARGEST = 2**31 - 1

# What a family's modelling code fixes, whatever its config.json says.
_FIXED: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"attention_bias": False, "o_proj_bias": False, "mlp_bias": False},
    "qwen2": {"attention_bias": True, "o_proj_bias": False, "mlp_bias": False},
    "qwen3": {"qk_norm": True, "mlp_bias": False},
}
# What it assumes where config.json is silent (the defaults of transformers' configuration classes).
_ASSUMED: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"max_position_embeddings": 131_072, "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"max_position_embeddings": 32_768, "num_key_value_heads": 32, "use_sliding_window": False},
    "qwen3": {
        "max_position_embeddings": 32_768,
        "num_key_value_heads": 32,
        "use_sliding_window": False,
        "head_dim": 128,
    },
}
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
FAMILIES = tuple(_FIXED)


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained length.

    kind: "default" (not at all), "linear" (positions divided by `factor`; kaiokendev, 2023) or "llama3"
    (low frequencies divided by `factor`, high ones kept, a ramp between; Llama 3.1's reference code).
    """

    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True)
class ModelConfig:
    """One decoder-only Transformer. Counts are counts, `head_dim` may differ from hidden_size / heads."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int = 2048
    model_type: str = "llama"
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    o_proj_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    # Positions a windowed layer sees (None: no layer is windowed), and every how many-th layer sees them all
    # (None: every layer is windowed).
    sliding_window: int | None = None
    sliding_window_pattern: int | None = None
    latent: Latent | None = None
    experts: Experts | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        for name in (*sizes, "head_dim", "intermediate_size", "vocab_size", "max_position_embeddings"):
            most = MOST_LAYERS if name == "num_hidden_layers" else LARGEST
            _ensure_whole(name, getattr(self, name), 1, most)
        for name in ("rms_norm_eps", "rope_theta"):
            _ensure_positive(name, getattr(self, name))
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"{self.num_attention_heads} query heads cannot share {self.num_key_value_heads} key/value "
                "heads evenly; num_attention_heads must be a multiple of num_key_value_heads."
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim is {self.head_dim}; rotary embeddings need an even one.")

    @property
    def queries_per_kv_head(self) -> int:
        """How many query heads read one key/value head: 1 is MHA, all of them is MQA, between is GQA."""
        return self.num_attention_heads // self.num_key_value_heads

    @property
    def windowed_layers(self) -> int:
        """Layers that see only the last sliding_window positions."""
        if self.sliding_window is None:
            return 0
        every = self.sliding_window_pattern
        return self.num_hidden_layers - (self.num_hidden_layers // every if every else 0)

    @property
    def attention_kind(self) -> str:
        """Which sharing this is: "MHA", "GQA", "MQA" or "MLA"."""
        if self.latent is not None:
            return "MLA"
        if self.num_key_value_heads == self.num_attention_heads:
            return "MHA"
        return "MQA" if self.num_key_value_heads == 1 else "GQA"

    def with_(self, **changes: Any) -> ModelConfig:
        """The same configuration with some fields changed, validated again."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain data (for JSON results; not a Hugging Face config.json)."""
        return asdict(self)

    @classmethod
    def from_file(cls, path: Path) -> ModelConfig:
        """Read a `config.json`. Raises ConfigError when it is missing, not JSON or not supported."""
        try:
            data = read_object(path, error=ConfigError)
        except FileNotFoundError:
            raise ConfigError(f"No config.json in {path.parent}; a model folder needs one.") from None
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelConfig:
        """Translate a Hugging Face config. Raises ConfigError for what this engine cannot run."""
        family = _family(data)
        # What is absent has its family's default; what is null is switched off.
        data = {key: value for key, value in (_ASSUMED[family] | dict(data)).items() if value is not None}
        missing = [key for key in (*_REQUIRED, "max_position_embeddings") if key not in data]
        if missing:
            raise ConfigError(f"config.json lacks {', '.join(missing)}; this checkpoint is incomplete.")
        _refuse_unsupported(data)
        return cls(**_fields(data, family))

    def to_hugging_face(self) -> dict[str, Any]:
        """The `config.json` that describes this model to `transformers` (every version) and to `from_dict`.

        Raises ConfigError for a combination that no supported family can state.
        """
        data = {key: getattr(self, key) for key in (*_REQUIRED, *_OPTIONAL)} | {
            "architectures": [_ARCHITECTURES[self.model_type]],
            "model_type": self.model_type,
            "hidden_act": "silu",
            "eos_token_id": _as_number_or_list(self.eos_token_ids),
            "rope_theta": self.rope_theta,
            "rope_scaling": _rope_scaling(self.rope_scaling),
            "sliding_window": self.sliding_window,
            "use_cache": True,
        }
        back = ModelConfig.from_dict(data)
        if back != self:
            wrong = [f.name for f in fields(self) if getattr(back, f.name) != getattr(self, f.name)]
            raise ConfigError(
                f"A {self.model_type} config.json cannot state {', '.join(wrong)} of this model; "
                "choose another model_type."
            )
        return data


_REQUIRED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
_OPTIONAL = (
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
    "bos_token_id",
)


def _family(data: Mapping[str, Any]) -> str:
    named = data.get("model_type", "")
    family = named.lower() if isinstance(named, str) else ""
    if family not in FAMILIES:
        names = data.get("architectures")
        name = names[0] if isinstance(names, list) and names else named or "unnamed"
        raise ConfigError(
            f"Architecture {reprlib.repr(name)} is not supported; labcore runs {', '.join(FAMILIES)} "
            "checkpoints."
        )
    return family


def _fields(data: Mapping[str, Any], family: str) -> dict[str, Any]:
    """The arguments of ModelConfig, from a config.json whose gaps are filled."""
    heads = _whole(data, "num_attention_heads")
    theta, scaling = _rope(data)
    head_dim = _whole(data, "head_dim", 0) or _even_share(_whole(data, "hidden_size"), heads)
    return {
        **{key: _whole(data, key) for key in _REQUIRED},
        "num_key_value_heads": _whole(data, "num_key_value_heads", heads),
        "head_dim": head_dim,
        "max_position_embeddings": _context(data),
        # Only where every layer slides, which is what this engine's sliding window does.
        "sliding_window": _window(data) if family == "mistral" else None,
        "model_type": family,
        "rms_norm_eps": _number(data, "rms_norm_eps", 1e-6),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": _flag(data, "tie_word_embeddings"),
        "attention_bias": _flag(data, "attention_bias"),
        "o_proj_bias": _flag(data, "attention_bias"),
        "mlp_bias": _flag(data, "mlp_bias"),
        "bos_token_id": next(iter(token_ids("bos_token_id", data.get("bos_token_id"))), None),
        "eos_token_ids": token_ids("eos_token_id", data.get("eos_token_id")),
    } | _FIXED[family]


def _ensure_whole(name: str, value: object, least: int, most: int = LARGEST) -> int:
    """The value, if it is a whole number (JSON's true is none, though Python's is)."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(
            f"{name} is {reprlib.repr(value)}, of the wrong kind; it must be a whole number of at least "
            f"{least}."
        )
    if value < least:
        raise ConfigError(f"{name} is {value}; it must be a whole number of at least {least}.")
    if value > most:
        raise ConfigError(
            f"{name} is {reprlib.repr(value)}, and labcore takes at most {most:,}; "
            "the file is damaged, so fetch it again."
        )
    return value


def _ensure_positive(name: str, value: object) -> float:
    """The value as a float, if it is a finite number above 0."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ConfigError(f"{name} is {reprlib.repr(value)}, of the wrong kind; it must be a number above 0.")
    if not 0 < value < 1e300:  # NaN is not either; an int may exceed what a float holds
        raise ConfigError(f"{name} is {reprlib.repr(value)}; it must be a finite number above 0.")
    return float(value)


def _whole(data: Mapping[str, Any], key: str, default: int | None = None) -> int:
    if default is not None and key not in data:
        return default
    return _ensure_whole(key, data.get(key), 1)


def _number(data: Mapping[str, Any], key: str, default: float) -> float:
    return _ensure_positive(key, data.get(key, default))


def _flag(data: Mapping[str, Any], key: str, default: bool = False) -> bool:
    value = data.get(key, default)
    if not isinstance(value, bool):
        raise ConfigError(f"{key} is {reprlib.repr(value)}, of the wrong kind; it must be true or false.")
    return value


def _even_share(hidden_size: int, heads: int) -> int:
    if hidden_size % heads:
        raise ConfigError(
            f"hidden_size {hidden_size} does not divide into {heads} heads; config.json must state head_dim."
        )
    return hidden_size // heads


def _context(data: Mapping[str, Any]) -> int:
    """Positions the model may fill.

    Within its sliding window, windowed attention and full attention are the same thing; beyond it they are
    not, and the Transformer here attends fully. So a window ends the context.
    """
    return min(_whole(data, "max_position_embeddings"), _window(data) or LARGEST)


def _window(data: Mapping[str, Any]) -> int | None:
    """Positions that a sliding layer sees; None where no layer slides."""
    if data.get("sliding_window") in (None, 0) or not _flag(data, "use_sliding_window", True):
        return None
    kinds = data.get("layer_types", ["sliding_attention"])
    if not isinstance(kinds, list):
        raise ConfigError(
            f"layer_types is {reprlib.repr(kinds)}, of the wrong kind; it must be a list of names."
        )
    return _whole(data, "sliding_window") if "sliding_attention" in kinds else None


def _refuse_unsupported(data: Mapping[str, Any]) -> None:
    """Refuse settings that would load and then give wrong text."""
    activation = data.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        shown = reprlib.repr(activation)
        raise ConfigError(f"hidden_act is {shown}; labcore's feed-forward layer is SwiGLU (silu).")


def _rope(data: Mapping[str, Any]) -> tuple[float, RopeScaling]:
    """Read `rope_parameters` (new) or `rope_theta` and `rope_scaling` (old)."""
    settings = data.get("rope_parameters") or data.get("rope_scaling") or {}
    if not isinstance(settings, dict):
        raise ConfigError(
            f"The rotary settings are {reprlib.repr(settings)}, of the wrong kind; they must be an object."
        )
    settings = {key: value for key, value in settings.items() if value is not None}
    theta = _number(settings if "rope_theta" in settings else data, "rope_theta", 10_000.0)
    kind = settings.get("rope_type", settings.get("type", "default"))
    if not isinstance(kind, str) or kind not in _SCALINGS:
        raise ConfigError(
            f"Rotary scaling {reprlib.repr(kind)} is not supported; labcore knows {', '.join(_SCALINGS)}."
        )
    if missing := [key for key in _SCALINGS[kind] if key not in settings]:
        raise ConfigError(f"Rotary scaling {kind!r} lacks {', '.join(missing)} in config.json.")
    partial = _number(settings if "partial_rotary_factor" in settings else data, "partial_rotary_factor", 1.0)
    if partial != 1.0:
        raise ConfigError(f"Only {partial:.0%} of each head is rotated here; labcore rotates whole heads.")
    trained = "original_max_position_embeddings"
    values: dict[str, Any] = {key: _number(settings, key, 1.0) for key in _SCALINGS[kind] if key != trained}
    if kind == "llama3":
        values[trained] = _whole(settings, trained)
        if not values["low_freq_factor"] < values["high_freq_factor"]:
            raise ConfigError(
                f"low_freq_factor is {values['low_freq_factor']:g} and high_freq_factor is "
                f"{values['high_freq_factor']:g}; rotary scaling 'llama3' needs the first below the second."
            )
    return theta, RopeScaling(kind=kind, **values)


# Each kind of rotary scaling, and the settings that it cannot do without.
_SCALINGS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def _rope_scaling(scaling: RopeScaling) -> dict[str, Any] | None:
    if scaling.kind == "default":
        return None
    return {"rope_type": scaling.kind} | {key: getattr(scaling, key) for key in _SCALINGS[scaling.kind]}


def token_ids(name: str, value: object) -> tuple[int, ...]:
    """One token id, a list of them, or null for none. Raises ConfigError for anything else."""
    if value is None:
        return ()
    values = value if isinstance(value, list) else [value]
    return tuple(_ensure_whole(name, one, 0) for one in values)


def _as_number_or_list(ids: tuple[int, ...]) -> int | list[int] | None:
    return list(ids) if len(ids) > 1 else next(iter(ids), None)
