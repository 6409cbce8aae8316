"""Weights that are no numbers stop the load, in whatever form they are stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import labcore
from labcore import catalog
from labcore.errors import CheckpointError, OutOfMemory
from labcore.model import device, hub, loading
from labcore.model.finite import ensure_finite
from labcore.model.quant_checkpoint import save_quantized
from labcore.quant import quantize


def edit(folder: Path, name: str, place: int, value: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[place] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_what_float16_cannot_hold_names_the_dtypes_that_can(folder: Path) -> None:
    edit(folder, "model.layers.2.mlp.down_proj.weight", 7, 1e5)
    with pytest.raises(CheckpointError, match=r"layers\.2\.mlp\.down_proj\.weight .* float16, .*'bfloat16'"):
        labcore.load(folder, device="cpu", dtype="float16")
    assert labcore.load(folder, device="cpu", dtype="bfloat16").num_parameters > 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_scale_of_codes_is_a_weight_too(folder: Path, tmp_path: Path, value: float) -> None:
    model = labcore.load(folder, device="cpu", dtype="float32")
    quantize(model, "int8")
    saved = save_quantized(model, tmp_path / "codes")
    name = next(name for name in load_file(saved / "model.safetensors") if name.endswith("scale"))
    edit(saved, name, 0, value)
    with pytest.raises(CheckpointError, match=rf"{name} of codes holds NaN or infinity"):
        labcore.load(saved, device="cpu", dtype="float32")


def test_eight_bit_floats_and_empty_tensors() -> None:
    module = torch.nn.Module()
    module.register_buffer("none", torch.empty(0))
    module.register_buffer("codes", torch.tensor([1.0, -2.0]).to(torch.float8_e4m3fn))
    ensure_finite(module, "x", torch.float32)
    module.codes = torch.tensor([1.0, float("nan")]).to(torch.float8_e4m3fn)
    with pytest.raises(CheckpointError, match="codes of x holds NaN"):
        ensure_finite(module, "x", torch.float32)


@pytest.mark.parametrize(
    ("stored", "sentence"),
    [
        ({}, "billion weights of owner/wide"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "weights of owner/wide have"),
    ],
)
def test_a_configuration_from_the_hub_is_weighed_before_anything_is_built(
    stored: dict, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = {"model_type": "llama", "hidden_size": 2**20, "num_hidden_layers": 2048, "vocab_size": 2**20}
    wide |= {"num_attention_heads": 1024, "intermediate_size": 2**20}
    (tmp_path / "config.json").write_text(json.dumps(wide | stored))

    def fetch(repo: str, revision: object, progress: object, accept: Callable[[Path], None]) -> Path:
        accept(tmp_path / "config.json")
        raise AssertionError("it was taken")

    monkeypatch.setattr(hub, "fetch", fetch)
    monkeypatch.setattr(loading, "_skeleton", lambda config: pytest.fail("a skeleton was built"))
    with pytest.raises(OutOfMemory, match=sentence):
        labcore.load("owner/wide", device="cpu")


def test_codes_from_the_hub_are_weighed_by_their_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that fits in 4 bits and not in full precision is fetched."""
    config = catalog.architecture("llama-3.1-8b")
    monkeypatch.setattr(device, "available_memory", lambda place: 6 * 10**9)
    for bits, fits in ((4, True), (8, False), (None, False)):
        stored = bits and {"quant_method": "gptq", "bits": bits}
        with nullcontext() if fits else pytest.raises(OutOfMemory):
            loading._ensure_fits_as_stored(config, stored, "x", torch.device("cpu"), torch.bfloat16)
