from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labcore.config import ModelConfig, RopeScaling
from labcore.errors import ConfigError

BASE: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 320,
    "max_position_embeddings": 256,
}


def read(**changes: Any) -> ModelConfig:
    return ModelConfig.from_dict({key: value for key, value in (BASE | changes).items() if value is not ...})


@pytest.mark.parametrize(
    ("kv_heads", "kind", "sharing"), [(4, "MHA", 1), (2, "GQA", 2), (1, "MQA", 4), (None, "MHA", 1)]
)
def test_kinds_of_attention(kv_heads: int | None, kind: str, sharing: int) -> None:
    config = read(num_key_value_heads=kv_heads)
    assert (config.attention_kind, config.queries_per_kv_head) == (kind, sharing)


def test_head_dim_may_differ_from_hidden_over_heads() -> None:
    assert read().head_dim == 16
    assert read(head_dim=None).head_dim == 16
    assert read(head_dim=48).head_dim == 48


def test_silence_means_what_the_family_assumes() -> None:
    qwen3 = read(
        model_type="qwen3", num_attention_heads=32, num_key_value_heads=..., max_position_embeddings=...
    )
    assert (qwen3.head_dim, qwen3.num_key_value_heads, qwen3.max_position_embeddings) == (128, 32, 32_768)
    assert qwen3.qk_norm
    mistral = read(model_type="mistral", num_attention_heads=8, num_key_value_heads=...)
    assert mistral.num_key_value_heads == 8
    assert read(rope_theta=...).rope_theta == 10_000.0


@pytest.mark.parametrize(
    ("family", "biases"),
    [
        ("llama", (True, True, True)),
        ("mistral", (False, False, False)),
        ("qwen2", (True, False, False)),
        ("qwen3", (True, True, False)),
    ],
)
def test_which_biases_a_family_has_when_its_file_asks_for_all(family: str, biases: tuple[bool, ...]) -> None:
    config = read(model_type=family, num_key_value_heads=2, attention_bias=True, mlp_bias=True)
    assert (config.attention_bias, config.o_proj_bias, config.mlp_bias) == biases


LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
        {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **LLAMA3}},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **LLAMA3}},
    ],
)
def test_spellings_of_rotary_settings(spelling: dict[str, Any]) -> None:
    config = read(**spelling)
    assert config.rope_theta == 5e5
    assert config.rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)


def test_a_sliding_window_ends_the_context() -> None:
    """Within the window full attention is the same thing; beyond it our Transformer would give other text."""
    assert (
        read(model_type="mistral", num_key_value_heads=2, sliding_window=100).max_position_embeddings == 100
    )
    assert (
        read(model_type="mistral", num_key_value_heads=2, sliding_window=None).max_position_embeddings == 256
    )
    switched_off = {"model_type": "qwen2", "num_key_value_heads": 2, "sliding_window": 100}
    assert read(**switched_off, use_sliding_window=False).max_position_embeddings == 256
    assert read(**switched_off, use_sliding_window=True).max_position_embeddings == 100
    full = {"layer_types": ["full_attention"] * 3, "use_sliding_window": True}
    assert read(**switched_off, **full).max_position_embeddings == 256


@pytest.mark.parametrize(("given_ids", "ids"), [(None, ()), (2, (2,)), (0, (0,)), ([5, 7], (5, 7))])
def test_end_of_text_ids(given_ids: Any, ids: tuple[int, ...]) -> None:
    assert read(eos_token_id=given_ids).eos_token_ids == ids


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "'GPT2LMHeadModel' is not supported"),
        ({"model_type": ..., "architectures": ...}, "'unnamed' is not supported"),
        ({"hidden_size": ..., "vocab_size": ...}, "lacks hidden_size, vocab_size"),
        ({"hidden_size": "wide"}, "wrong kind"),
        ({"hidden_size": 66}, "66 does not divide into 4 heads"),
        ({"num_attention_heads": 0}, "must be a whole number of at least 1|wrong kind"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ({"num_key_value_heads": 3}, "4 query heads cannot share 3"),
        ({"head_dim": 15}, "head_dim is 15"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "'yarn' is not supported"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "'llama3' lacks low_freq_factor"),
        ({"rope_scaling": {"type": "linear"}}, "'linear' lacks factor"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "above 0"),
        ({"rope_scaling": "linear"}, "wrong kind"),
        ({"rope_theta": -1}, "above 0"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "Only 50% of each head"),
    ],
)
def test_refused_in_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read(**changes)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '"llama"', "\x00"])
def test_files_that_are_no_configuration(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match="fetch the file again"):
        ModelConfig.from_file(tmp_path / "config.json")


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No config\.json in"):
        ModelConfig.from_file(tmp_path / "config.json")


SCALINGS = st.one_of(
    st.just(RopeScaling()),
    st.builds(RopeScaling, kind=st.just("linear"), factor=st.floats(1, 8)),
    st.builds(
        RopeScaling, st.just("llama3"), st.floats(1, 8), st.just(1.0), st.just(4.0), st.integers(64, 8192)
    ),
)


@given(
    st.sampled_from(["llama", "qwen3"]), SCALINGS, st.booleans(), st.booleans(), st.integers(1, 3), st.data()
)
def test_written_and_read_back_it_is_the_same(
    family: str, scaling: RopeScaling, tied: bool, biases: bool, heads: int, data: st.DataObject
) -> None:
    config = ModelConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=heads * 2,
        num_key_value_heads=heads,
        head_dim=data.draw(st.sampled_from([8, 24])),
        intermediate_size=64,
        vocab_size=data.draw(st.integers(1, 10**6)),
        model_type=family,
        rope_scaling=scaling,
        tie_word_embeddings=tied,
        attention_bias=biases,
        o_proj_bias=biases,
        mlp_bias=biases and family == "llama",
        qk_norm=family == "qwen3",
        bos_token_id=data.draw(st.none() | st.integers(0, 9)),
        eos_token_ids=tuple(data.draw(st.lists(st.integers(0, 9), max_size=3))),
    )
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_hugging_face()))) == config


def test_what_no_family_can_state_is_not_written() -> None:
    with pytest.raises(ConfigError, match="llama config.json cannot state qk_norm"):
        read().with_(qk_norm=True).to_hugging_face()
