"""The shape of a model, in Hugging Face's field names.

`ModelConfig.from_dict` reads the `config.json` of Llama, Mistral, Qwen2 and Qwen3 checkpoints in both
spellings of the rotary settings: the old (`rope_theta`, `rope_scaling`) and the new (`rope_parameters`).
What those families differ in (biases, norms on queries and keys, an explicit head size, a tied head)
is a field here, so that one Transformer serves them all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from labcore.errors import ConfigError
from labcore.shapes import Experts, Latent

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
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least 1.")
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
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"No config.json in {path.parent}; a model folder needs one.") from None
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ConfigError(f"{path} is not valid JSON ({error}); fetch the file again.") from None
        if not isinstance(data, dict):
            raise ConfigError(f"{path} holds no JSON object; fetch the file again.")
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
        try:
            return cls(**_fields(data, family))
        except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
            raise ConfigError(f"A value in config.json is of the wrong kind ({error}); mend it.") from None

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
    family = str(data.get("model_type", "")).lower()
    if family not in FAMILIES:
        names = data.get("architectures") or [family or "unnamed"]
        raise ConfigError(
            f"Architecture {names[0]!r} is not supported; labcore runs {', '.join(FAMILIES)} checkpoints."
        )
    return family


def _fields(data: Mapping[str, Any], family: str) -> dict[str, Any]:
    """The arguments of ModelConfig, from a config.json whose gaps are filled."""
    heads = int(data["num_attention_heads"])
    theta, scaling = _rope(data)
    return {
        **{key: int(data[key]) for key in _REQUIRED},
        "num_key_value_heads": int(data.get("num_key_value_heads", heads)),
        "head_dim": int(data.get("head_dim") or _even_share(int(data["hidden_size"]), heads)),
        "max_position_embeddings": _context(data),
        # Only where every layer slides, which is what this engine's sliding window does.
        "sliding_window": int(data["sliding_window"]) if family == "mistral" and _slides(data) else None,
        "model_type": family,
        "rms_norm_eps": float(data.get("rms_norm_eps", 1e-6)),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": bool(data.get("tie_word_embeddings", False)),
        "attention_bias": bool(data.get("attention_bias", False)),
        "o_proj_bias": bool(data.get("attention_bias", False)),
        "mlp_bias": bool(data.get("mlp_bias", False)),
        "bos_token_id": next(iter(_as_ids(data.get("bos_token_id"))), None),
        "eos_token_ids": _as_ids(data.get("eos_token_id")),
    } | _FIXED[family]


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
    limit = int(data["max_position_embeddings"])
    return min(limit, int(data["sliding_window"])) if _slides(data) else limit


def _slides(data: Mapping[str, Any]) -> bool:
    if not data.get("sliding_window") or not data.get("use_sliding_window", True):
        return False
    return "sliding_attention" in data.get("layer_types", ["sliding_attention"])


def _refuse_unsupported(data: Mapping[str, Any]) -> None:
    """Refuse settings that would load and then give wrong text."""
    activation = data.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ConfigError(f"hidden_act is {activation!r}; labcore's feed-forward layer is SwiGLU (silu).")


def _rope(data: Mapping[str, Any]) -> tuple[float, RopeScaling]:
    """Read `rope_parameters` (new) or `rope_theta` and `rope_scaling` (old)."""
    settings = dict(data.get("rope_parameters") or data.get("rope_scaling") or {})
    theta = float(settings.get("rope_theta") or data.get("rope_theta") or 10_000.0)
    kind = settings.get("rope_type", settings.get("type", "default"))
    if kind not in _SCALINGS:
        raise ConfigError(f"Rotary scaling {kind!r} is not supported; labcore knows {', '.join(_SCALINGS)}.")
    if missing := [key for key in _SCALINGS[kind] if settings.get(key) is None]:
        raise ConfigError(f"Rotary scaling {kind!r} lacks {', '.join(missing)} in config.json.")
    partial = settings.get("partial_rotary_factor", data.get("partial_rotary_factor", 1.0))
    if partial != 1.0:
        raise ConfigError(f"Only {partial:.0%} of each head is rotated here; labcore rotates whole heads.")
    values: dict[str, Any] = {key: float(settings[key]) for key in _SCALINGS[kind]}
    if "original_max_position_embeddings" in values:
        values["original_max_position_embeddings"] = int(values["original_max_position_embeddings"])
    if theta <= 0 or any(value <= 0 for value in values.values()):
        raise ConfigError(f"Rotary settings must be above 0; config.json says rope_theta {theta}, {values}.")
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


def _as_ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(int(one) for one in value) if isinstance(value, list) else (int(value),)


def _as_number_or_list(ids: tuple[int, ...]) -> int | list[int] | None:
    return list(ids) if len(ids) > 1 else next(iter(ids), None)
