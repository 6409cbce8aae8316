"""The catalogues: every row whole, sourced and consistent; names forgiving, errors helpful."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from labcore import catalog
from labcore.errors import CatalogError
from labcore.perf.costs import num_parameters


@pytest.mark.parametrize("name", catalog.architectures())
def test_shape_counts_to_the_stated_parameters(name: str) -> None:
    entry = catalog.entry(name)
    counted = num_parameters(entry.config)
    # Sources name sizes in round numbers ("40B" for 41.3); where they state them exactly, so do we count.
    exact = entry.parameters % 1_000_000 != 0
    assert counted == entry.parameters if exact else abs(counted / entry.parameters - 1) < 0.035
    assert entry.source


# What a config.json states of a model that is run; and what enters a count of one that is only drawn.
EVERY = {
    "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "intermediate_size", "vocab_size", "max_position_embeddings", "tie_word_embeddings",
    "attention_bias", "o_proj_bias", "mlp_bias", "qk_norm", "sliding_window", "sliding_window_pattern",
}  # fmt: skip
NORM_AND_POSITIONS = {"rms_norm_eps", "rope_theta"}
RUN = EVERY | NORM_AND_POSITIONS | {"rope_scaling", "hidden_act", "bos_token_id", "eos_token_id"}
ROTARY = ("gemma2", "gemma3", "phi3", "mixtral", "qwen3_moe", "deepseek")


def _row(name: str) -> dict[str, Any]:
    text = (catalog.data_dir() / "catalog" / "architectures.json").read_text(encoding="utf-8")
    row: dict[str, Any] = json.loads(text)["architectures"][name]
    return row


@pytest.mark.parametrize("name", catalog.architectures())
def test_no_row_leaves_a_field_to_a_default(name: str) -> None:
    row, entry = _row(name)["config"], catalog.entry(name)
    wanted = RUN if entry.runnable else EVERY | {"latent", "experts"}
    if row["model_type"] in ("qwen2", "qwen3"):
        wanted = wanted | {"use_sliding_window"}
    if row["model_type"] in ROTARY:
        wanted = wanted | NORM_AND_POSITIONS
    assert not wanted - set(row), "state these fields in the row, as null where the model has none"


@pytest.mark.parametrize("name", catalog.architectures())
def test_what_a_row_states_is_what_is_read(name: str) -> None:
    row, config = _row(name)["config"], catalog.architecture(name)
    read = config.to_dict()
    window = row["sliding_window"]
    for field in (EVERY | NORM_AND_POSITIONS) & set(row) - {"max_position_embeddings"}:
        assert read[field] == row[field], field
    cut = window is not None and catalog.entry(name).runnable  # the engine's context ends at its window
    longest = row["max_position_embeddings"]
    assert config.max_position_embeddings == (min(longest, window) if cut else longest)
    for part in ("latent", "experts"):
        assert read[part] == row.get(part), part


def test_rows_that_defaults_had_filled_in() -> None:
    mistral, first = catalog.architecture("mistral-7b"), catalog.architecture("mistral-7b-v0.1")
    assert (mistral.sliding_window, mistral.max_position_embeddings) == (None, 32_768)
    assert (first.sliding_window, first.windowed_layers, first.rope_theta) == (4096, 32, 10_000.0)
    for size, eps in {"7b": 1e-6, "14b": 1e-5, "32b": 1e-5}.items():
        assert catalog.architecture(f"qwen2.5-{size}").rms_norm_eps == eps
    phi = catalog.architecture("phi-4")
    assert (phi.rms_norm_eps, phi.rope_theta, phi.sliding_window) == (1e-5, 250_000.0, None)
    assert catalog.architecture("deepseek-v2-lite").max_position_embeddings == 163_840


def test_runnable_shapes_are_of_families_the_engine_has() -> None:
    from labcore.config import FAMILIES

    for name in catalog.architectures():
        entry = catalog.entry(name)
        assert entry.runnable == (entry.config.model_type in FAMILIES)
        assert entry.runnable or entry.reason
    assert set(catalog.architectures(runnable_only=True)) < set(catalog.architectures())


@pytest.mark.parametrize("name", catalog.gpus())
def test_device_rows_are_whole(name: str) -> None:
    gpu = catalog.gpu(name)
    assert gpu.memory_bytes > 1e9
    assert gpu.bandwidth > 1e10
    assert gpu.flops
    assert min(gpu.flops.values()) > 1e12
    assert gpu.source
    assert (gpu.usd_per_hour is None) == (gpu.price_source is None)
    assert gpu.price_source is None or "assumed" in gpu.price_source


# GB, GB/s, dense fp16 TFLOP/s as the data sheets state them.
DATA_SHEETS = {
    "a10": (24, 600, 125),
    "a100-80gb-pcie": (80, 1935, 312),
    "a100-80gb-sxm": (80, 2039, 312),
    "l4": (24, 300, 121),
    "l40s": (48, 864, 362),
    "h100-pcie": (80, 2000, 756),
    "h100-sxm": (80, 3350, 989),
    "h200": (141, 4800, 989),
    "t4": (16, 320, 65),
    "a6000": (48, 768, 155),
    "rtx-4090": (24, 1008, 165),
}


@pytest.mark.parametrize("name", DATA_SHEETS)
def test_data_sheet_values(name: str) -> None:
    gpu = catalog.gpu(name)
    memory, bandwidth, rate = DATA_SHEETS[name]
    assert (gpu.memory_bytes, gpu.bandwidth, gpu.flops["float16"]) == (
        memory * 1e9,
        bandwidth * 1e9,
        rate * 1e12,
    )


def test_names_are_case_insensitive_and_take_spaces() -> None:
    assert catalog.architecture("Llama 2_7B") == catalog.architecture("llama-2-7b")
    assert catalog.gpu("H100 SXM").name == "h100-sxm"
    assert catalog.gpu("A100-SXM").name == "a100-80gb-sxm"


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(CatalogError, match=r"'lama-2-7b'; nearest: llama-2-7b"):
        catalog.architecture("lama-2-7b")
    with pytest.raises(CatalogError, match="nearest: h100-pcie, h100-sxm"):
        catalog.gpu("H100")
    with pytest.raises(CatalogError, match="there are a10,"):
        catalog.gpu("zzzzzz")
    with pytest.raises(CatalogError, match="nearest: story"):
        catalog.embedded("storie")


def _fake_data(folder: Path, architectures: str) -> Path:
    (folder / "catalog").mkdir(parents=True)
    (folder / "catalog" / "architectures.json").write_text(architectures)
    return folder


def test_data_dir_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config |= {"intermediate_size": 16, "vocab_size": 32}
    row = {"title": "Mine", "parameters": 1, "source": "here", "config": config}
    folder = _fake_data(tmp_path / "data", json.dumps({"architectures": {"mine": row}}))
    monkeypatch.setenv("LABCORE_DATA", str(folder))
    assert catalog.data_dir() == folder
    assert catalog.architectures() == ["mine"]
    assert catalog.architecture("mine").head_dim == 4
    with pytest.raises(CatalogError, match="fetch a whole checkout"):
        catalog.embedded("story")


def test_missing_or_damaged_data_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABCORE_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(CatalogError, match="LABCORE_DATA"):
        catalog.data_dir()
    monkeypatch.setenv("LABCORE_DATA", str(_fake_data(tmp_path / "bad", "{not json")))
    with pytest.raises(CatalogError, match="cannot be read"):
        catalog.architectures()


def test_embedded_models_lie_in_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _fake_data(tmp_path / "data", "{}")
    for name in ("model", "draft"):
        (folder / "story" / name).mkdir(parents=True)
        (folder / "story" / name / "config.json").write_text("{}")
    monkeypatch.setenv("LABCORE_DATA", str(folder))
    assert catalog.embedded("story") == folder / "story" / "model"
    assert catalog.embedded("STORY-draft") == folder / "story" / "draft"


def test_a_device_is_recognised_by_the_name_its_driver_reports() -> None:
    assert catalog.gpu_reported_as("NVIDIA H100 80GB HBM3") == catalog.gpu("h100-sxm")
    assert catalog.gpu_reported_as("amd ryzen 9 7950x 16-core processor") == catalog.gpu("ryzen-7950x")
    assert catalog.gpu_reported_as("NVIDIA A10G") is None  # another device than the A10
    assert catalog.gpu_reported_as("NVIDIA A10") == catalog.gpu("a10")
    assert catalog.gpu_reported_as("AMD EPYC") is None
