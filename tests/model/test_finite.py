"""Weights that are no numbers stop the load, in whatever form they are stored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import labcore
from labcore.config import ModelConfig
from labcore.errors import CheckpointError, OutOfMemory
from labcore.model import hub, loading
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


def test_a_configuration_from_the_hub_is_weighed_before_anything_is_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wide = ModelConfig(2**20, 2048, 1024, 1024, 1024, 2**20, 2**20)

    def fetch(repo: str, revision: object, progress: object, accept: object) -> Path:
        accept(wide)  # type: ignore[operator]
        raise AssertionError("it was taken")

    monkeypatch.setattr(hub, "fetch", fetch)
    monkeypatch.setattr(loading, "_skeleton", lambda config: pytest.fail("a skeleton was built"))
    with pytest.raises(OutOfMemory, match="billion weights of owner/wide"):
        labcore.load("owner/wide", device="cpu")
