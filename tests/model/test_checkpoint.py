"""Files that are wrong: each gets one sentence with names and numbers, and no model comes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import labcore
from labcore.errors import CheckpointError, ConfigError, LabError
from labcore.model import checkpoint as checkpoint_files
from tests import checkpoints

Tensors = dict[str, torch.Tensor]
NORM = "model.norm.weight"
QUERY = "model.layers.1.self_attn.q_proj.weight"


def rewrite(folder: Path, change: Callable[[Tensors], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def refused(folder: Path, sentence: str, error: type[LabError] = CheckpointError) -> str:
    with pytest.raises(error, match=sentence) as caught:
        labcore.load(folder, dtype="float32", device="cpu")
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


def test_shards_load_as_one_file_does(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    checkpoints.write("qwen3", whole)
    checkpoints.write("qwen3", parts, shard_size="100KB")
    assert len(list(parts.glob("*.safetensors"))) > 2
    tokens = [5, 6, 7, 8]
    one, other = (labcore.logits(labcore.load(folder, dtype="float32"), tokens) for folder in (whole, parts))
    assert torch.equal(one, other)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_truncated_file(folder: Path, keep: float) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    cut = len(content) + keep if keep < 0 else len(content) * keep if isinstance(keep, float) else keep
    path.write_bytes(content[: int(cut)])
    refused(folder, rf"model\.safetensors \({int(cut):,} bytes\) is corrupt or cut short \(.+\); fetch")


@pytest.mark.parametrize(
    "header", [b"\xff" * 8, (50).to_bytes(8, "little") + b"{" * 50, b"not safetensors at all"]
)
def test_corrupt_header(folder: Path, header: bytes) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(header + path.read_bytes()[len(header) :])
    refused(folder, "is corrupt or cut short")


def test_missing_tensors(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.pop(NORM))
    refused(folder, rf"lacks {NORM} of the 30 tensors")
    rewrite(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if "mlp" in name])
    refused(folder, rf"lacks {NORM}, model\.layers\.0\.\S+, \S+ and 7 more \(10 in all\) of the 30 tensors")


def test_missing_head_of_an_untied_model(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.pop("lm_head.weight"))
    refused(folder, r"lacks lm_head\.weight")


def test_extra_tensors(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({"model.layers.7.mlp.down_proj.weight": torch.ones(2)}))
    refused(folder, r"holds model\.layers\.7\.mlp\.down_proj\.weight that its config\.json has no place for")


def test_biases_that_the_configuration_denies_are_not_dropped_silently(tmp_path: Path) -> None:
    checkpoints.write("llama-biases", tmp_path)
    checkpoints.edit_config(tmp_path, attention_bias=False)
    refused(tmp_path, r"holds model\.layers\.0\.self_attn\.k_proj\.bias.+\(12 in all\)")


def test_stored_rotary_frequencies_are_ignored(folder: Path) -> None:
    before = labcore.logits(labcore.load(folder), [5, 6])
    rewrite(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))
    assert torch.equal(labcore.logits(labcore.load(folder), [5, 6]), before)


def test_wrong_shape(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({QUERY: torch.ones(64, 63)}))
    refused(folder, rf"{QUERY} has shape \[64, 63\] where config\.json asks for \[64, 64\]")


def test_configuration_of_another_model(folder: Path) -> None:
    checkpoints.edit_config(folder, vocab_size=999)
    refused(folder, r"has shape \[320, 64\] where config\.json asks for \[999, 64\]")


def test_integer_weights(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({QUERY: torch.ones(64, 64, dtype=torch.int8)}))
    refused(folder, rf"{QUERY} is stored as I8; labcore reads F64, F32, F16, BF16")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_any_float_is_read_into_the_dtype_asked_for(folder: Path, dtype: torch.dtype) -> None:
    stored = load_file(folder / "model.safetensors")
    rewrite(folder, lambda tensors: tensors.update({name: t.to(dtype) for name, t in tensors.items()}))
    model = labcore.load(folder, dtype="bfloat16", device="cpu")
    assert {parameter.dtype for parameter in model.transformer.parameters()} == {torch.bfloat16}
    assert torch.equal(model.transformer.norm.weight, stored[NORM].to(dtype).bfloat16())


class TestTiedHead:
    @pytest.fixture
    def tied(self, tmp_path: Path) -> Path:
        checkpoints.write("llama-tied", tmp_path)
        return tmp_path

    def test_is_one_tensor_counted_once(self, tied: Path) -> None:
        model = labcore.load(tied, dtype="float32")
        assert model.transformer.lm_head.weight is model.transformer.embed_tokens.weight
        assert model.num_parameters == sum(t.numel() for t in load_file(tied / "model.safetensors").values())
        assert model.weight_bytes == 4 * model.num_parameters
        assert labcore.load(tied, dtype="bfloat16").weight_bytes == 2 * model.num_parameters

    def test_a_duplicate_of_it_is_accepted(self, tied: Path) -> None:
        embedding = "model.embed_tokens.weight"
        rewrite(tied, lambda tensors: tensors.update({"lm_head.weight": tensors[embedding].clone()}))
        model = labcore.load(tied)
        assert model.transformer.lm_head.weight is model.transformer.embed_tokens.weight

    @pytest.mark.filterwarnings("ignore")
    def test_another_matrix_unties_it_as_in_transformers(self, tied: Path) -> None:
        import transformers

        rewrite(tied, lambda tensors: tensors.update({"lm_head.weight": torch.randn(320, 64)}))
        model = labcore.load(tied, dtype="float32")
        assert not model.config.tie_word_embeddings
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tied).eval()
        with torch.no_grad():
            expected = theirs(torch.tensor([[5, 6, 7]])).logits
        torch.testing.assert_close(labcore.logits(model, [5, 6, 7]), expected, atol=1e-4, rtol=0)


class TestShards:
    @pytest.fixture
    def sharded(self, tmp_path: Path) -> Path:
        checkpoints.write("llama", tmp_path, shard_size="100KB")
        return tmp_path

    def index(self, folder: Path) -> Path:
        return folder / "model.safetensors.index.json"

    def test_a_missing_shard_is_named(self, sharded: Path) -> None:
        shards = sorted(sharded.glob("*.safetensors"))
        shards[1].unlink()
        refused(sharded, rf"lacks {shards[1].name} of its {len(shards)} shards")

    def test_a_shard_that_lacks_a_tensor(self, sharded: Path) -> None:
        name = json.loads(self.index(sharded).read_text())["weight_map"][QUERY]
        tensors = load_file(sharded / name)
        del tensors[QUERY]
        save_file(tensors, sharded / name)
        refused(sharded, f"lacks {QUERY} of the 30 tensors")

    def test_a_truncated_shard_is_named(self, sharded: Path) -> None:
        shard = sorted(sharded.glob("*.safetensors"))[-1]
        shard.write_bytes(shard.read_bytes()[:-7])
        refused(sharded, f"{shard.name} .+ is corrupt or cut short")

    @pytest.mark.parametrize("text", ["{}", '{"weight_map": {}}', '{"weight_map": {"a": 3}}'])
    def test_an_index_that_is_none(self, sharded: Path, text: str) -> None:
        self.index(sharded).write_text(text)
        refused(sharded, "is no index of shards")

    def test_an_index_cannot_lead_out_of_the_folder(self, sharded: Path) -> None:
        self.index(sharded).write_text('{"weight_map": {"a": "../other/model.safetensors"}}')
        refused(sharded, r"names \.\./other/model\.safetensors, which is outside of its own folder")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_refused_with_the_reason(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"cos\nsystem\n(S'touch /tmp/never'\ntR.")
    refused(folder, rf"only as pickle \({name}\), which can run any code when opened; .+ save_pretrained")


def test_a_pickle_beside_safetensors_is_not_touched(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"not a pickle")
    assert labcore.load(folder).num_parameters > 0


def test_a_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(folder, r"holds no model\.safetensors and no model\.safetensors\.index\.json")


def test_a_folder_without_configuration(folder: Path) -> None:
    (folder / "config.json").unlink()
    refused(folder, r"No config\.json in", ConfigError)


def test_a_broken_tokenizer_stops_the_load(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    refused(folder, "is not a tokenizer")


def test_tensors_are_read_one_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the next tensor is read, no earlier one is alive any more."""
    import weakref

    alive: list[weakref.ref[torch.Tensor]] = []
    read = checkpoint_files.Checkpoint.read
    most = 0

    def watched(self: checkpoint_files.Checkpoint, name: str) -> torch.Tensor:
        nonlocal most
        tensor = read(self, name)
        alive.append(weakref.ref(tensor))
        most = max(most, sum(ref() is not None for ref in alive))
        return tensor

    monkeypatch.setattr(checkpoint_files.Checkpoint, "read", watched)
    labcore.load(folder)
    assert len(alive) == 30
    assert most == 1
