"""The table of names, read in both directions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import labcore
from labcore.errors import ConfigError, DeviceError
from labcore.model import Transformer, save_checkpoint, weights
from tests import checkpoints

Checkpoint = Callable[[str], tuple[Path, Any]]


@pytest.mark.parametrize("case", list(checkpoints.CASES))
def test_every_tensor_comes_back_under_its_name(checkpoint: Checkpoint, case: str) -> None:
    folder, reference = checkpoint(case)
    model = labcore.load(folder, dtype="float32", device="cpu")
    ours, theirs = (
        weights.to_hugging_face(model.transformer, model.config),
        dict(reference.named_parameters()),
    )
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("case", list(checkpoints.CASES))
def test_every_row_of_every_parameter_has_exactly_one_place(checkpoint: Checkpoint, case: str) -> None:
    model = labcore.load(checkpoint(case)[0], dtype="float32", device="cpu")
    parameters = weights.parameters_of(model.transformer)
    covered = {name: torch.zeros(tensor.shape[0], dtype=torch.int) for name, tensor in parameters.items()}
    for place in weights.places(model.config, parameters).values():
        covered[place.parameter][place.start : place.stop] += 1
    assert all((rows == 1).all() for rows in covered.values())


@pytest.mark.parametrize(
    "case", ["llama", "llama-biases", "llama-rope-llama3", "qwen2-tied", "qwen3-tied-biases"]
)
def test_a_saved_checkpoint_loads_in_transformers_and_here(
    checkpoint: Checkpoint, case: str, tmp_path: Path
) -> None:
    import transformers

    model = labcore.load(checkpoint(case)[0], dtype="float32", device="cpu")
    home = save_checkpoint(model, model.config, tmp_path / "new" / "home", dtype="float32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(home).eval()
    tokens = torch.arange(3, 60)[None]
    with torch.no_grad():
        torch.testing.assert_close(labcore.logits(model, tokens), theirs(tokens).logits, atol=1e-4, rtol=0)
    again = labcore.load(home, dtype="float32", device="cpu")
    assert again.config == model.config
    assert torch.equal(labcore.logits(again, tokens), labcore.logits(model, tokens))
    assert sorted(path.name for path in home.iterdir()) == ["config.json", "model.safetensors"]


def test_a_freshly_trained_transformer_is_saved_in_half_the_bytes(
    tmp_path: Path, checkpoint: Checkpoint
) -> None:
    config = labcore.load(checkpoint("llama-tied")[0]).config
    transformer = Transformer(config)  # as a trainer has it: parameters that want gradients
    home = save_checkpoint(transformer, config, tmp_path, dtype="float16")
    numbers = sum(parameter.numel() for parameter in transformer.parameters())
    size = (home / "model.safetensors").stat().st_size
    assert 2 * numbers < size < 2 * numbers + 10_000
    loaded = labcore.load(home, dtype="float32", device="cpu")
    for name, tensor in weights.parameters_of(loaded.transformer).items():
        expected = weights.parameters_of(transformer)[name].detach().half().float()
        assert torch.equal(tensor, expected), name


def test_what_cannot_be_saved_leaves_nothing_behind(tmp_path: Path, checkpoint: Checkpoint) -> None:
    model = labcore.load(checkpoint("llama")[0])
    with pytest.raises(ConfigError, match="cannot state qk_norm"):
        save_checkpoint(model, model.config.with_(qk_norm=True), tmp_path / "a")
    with pytest.raises(DeviceError, match="no dtype 'int7'"):
        save_checkpoint(model, model.config, tmp_path / "a", dtype="int7")
    assert not (tmp_path / "a").exists()
