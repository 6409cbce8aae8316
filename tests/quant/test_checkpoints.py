"""Quantized checkpoints: our own, GPTQ's, AWQ's and GGUF, each against an independent dequantization."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

import labcore
from labcore.errors import CheckpointError
from labcore.model import Model, save_quantized, weights
from labcore.model.gguf_file import gguf_name
from labcore.model.gguf_writing import write_gguf
from labcore.quant.foreign import from_awq, from_gptq
from labcore.quant.gguf_blocks import BLOCKS, from_blocks
from labcore.quant.linear import QuantLinear, Stacked
from tests import checkpoints

gguf = pytest.importorskip("gguf")
TOKENS = [[1, 5, 9, 20, 7, 33, 250, 8, 8, 40]]


def small(tmp_path: Path, case: str = "llama", **changes: Any) -> Model:
    """A tiny model as transformers writes it."""
    checkpoints.build(case, **changes).save_pretrained(tmp_path / "plain")
    return labcore.load(tmp_path / "plain")


# Our own


RECIPES = (
    "int8", "int4:group=16,symmetric=false", "int3:group=32", "nf4:group=16", "fp8_e5m2",
    "fp8_e4m3:activations=token", "w8a8:activations=tensor",
    "int4:group=16,head=keep", "gptq-int4:group=16,act_order=true", "awq-int4:group=16",
    "smoothquant:activations=static", "llm_int8:threshold=1",
)  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("case", ["llama-biases", "qwen3-tied-biases"])
def test_what_was_saved_is_loaded(tmp_path: Path, case: str, recipe: str) -> None:
    model = small(tmp_path, case)
    rows = [list(range(1, 200)), list(range(100, 250))]
    labcore.quantize(model, recipe, calibration=rows, progress=False)
    save_quantized(model, tmp_path / "saved")
    again = labcore.load(tmp_path / "saved")
    assert again.recipe == model.recipe
    assert again.weight_bytes == model.weight_bytes
    assert torch.equal(labcore.logits(again, TOKENS), labcore.logits(model, TOKENS))


def test_the_tokenizer_goes_along(tmp_path: Path) -> None:
    model = labcore.load("story", dtype="float32")
    labcore.quantize(model, "int8", progress=False)
    again = labcore.load(save_quantized(model, tmp_path))
    assert again.tokenizer is not None
    assert model.tokenizer is not None
    text = "Tom has a red drum."
    assert again.tokenizer.encode(text, add_bos=True) == model.tokenizer.encode(text, add_bos=True)
    assert (
        labcore.generate(again, text, max_new_tokens=8).text
        == labcore.generate(model, text, max_new_tokens=8).text
    )


def test_damage_to_our_own_is_told(tmp_path: Path) -> None:
    model = small(tmp_path)
    with pytest.raises(CheckpointError, match="not quantized"):
        save_quantized(model, tmp_path / "saved")
    labcore.quantize(model, "int4:group=16", progress=False)
    home = save_quantized(model, tmp_path / "saved")
    config = json.loads((home / "config.json").read_text())
    layers = config["quantization_config"]["layers"]
    layers["layers.0.mlp.down_proj"]["format"] = "int4:group=32"
    (home / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"layers.0.mlp.down_proj has codes"):
        labcore.load(home)
    del layers["layers.0.mlp.down_proj"]
    (home / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="is missing or has no place"):
        labcore.load(home)
    whole = (home / "model.safetensors").read_bytes()
    (home / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cut short"):
        labcore.load(home)


# GPTQ and AWQ: packed here as their tools' documents say, apart from what labcore does


def packed_along_rows(codes: np.ndarray, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """(n, m) codes -> (n, m * bits / 32) int32, a loop over the places."""
    each = 32 // bits
    out = np.zeros((codes.shape[0], codes.shape[1] // each), dtype=np.uint32)
    for place in range(each):
        column = place if order is None else order[place]
        out |= codes[:, column::each].astype(np.uint32) << np.uint32(bits * place)
    return torch.from_numpy(out.view(np.int32).copy())


class Foreign:
    """One matrix quantized at random: its codes, and what they stand for."""

    def __init__(
        self, rows: int, columns: int, group: int, bits: int, seed: int, g_idx: np.ndarray | None = None
    ):
        rng = np.random.default_rng(seed)
        self.q = rng.integers(0, 2**bits, (columns, rows))
        self.zero = rng.integers(1, 2**bits, (columns // group, rows))
        self.scale = (rng.random((columns // group, rows)) * 0.02 + 0.005).astype(np.float16)
        self.g_idx = np.arange(columns) // group if g_idx is None else g_idx
        dense = (self.q - self.zero[self.g_idx]) * self.scale.astype(np.float32)[self.g_idx]
        self.weight = torch.from_numpy(dense.T.astype(np.float32))  # (rows, columns)

    def gptq(self, bits: int) -> dict[str, Tensor]:
        return {
            "qweight": packed_along_rows(self.q.T, bits).T.contiguous(),
            "qzeros": packed_along_rows(self.zero - 1, bits),
            "scales": torch.from_numpy(self.scale),
            "g_idx": torch.from_numpy(self.g_idx.astype(np.int32)),
        }

    def awq(self) -> dict[str, Tensor]:
        order = (0, 2, 4, 6, 1, 3, 5, 7)
        return {
            "qweight": packed_along_rows(self.q, 4, order),
            "qzeros": packed_along_rows(self.zero, 4, order),
            "scales": torch.from_numpy(self.scale),
        }


@given(st.sampled_from([8, 24, 64]), st.sampled_from([(32, 16), (64, 64), (96, 32)]), st.sampled_from([4, 8]),
       st.booleans(), st.integers(0, 999))  # fmt: skip
def test_gptq_codes_stand_for_what_their_tool_says(
    rows: int, columns: tuple[int, int], bits: int, shuffled: bool, seed: int
) -> None:
    width, group = columns
    g_idx = np.arange(width) // group
    if shuffled:
        np.random.default_rng(seed).shuffle(g_idx)
    made = Foreign(rows, width, group, bits, seed, g_idx)
    held, order = from_gptq(**made.gptq(bits), bits=bits, group=group)
    layer = QuantLinear(held, order=order)
    torch.testing.assert_close(layer.dense(), made.weight)
    x = torch.randn(3, width)
    torch.testing.assert_close(layer.reference(x), x @ made.weight.T, rtol=1e-4, atol=1e-4)


@given(st.sampled_from([8, 24, 64]), st.sampled_from([(32, 16), (64, 64)]), st.integers(0, 999))
def test_awq_codes_stand_for_what_their_tool_says(rows: int, columns: tuple[int, int], seed: int) -> None:
    made = Foreign(rows, *columns, 4, seed)
    held = from_awq(**made.awq(), group=columns[1])
    torch.testing.assert_close(held.dequantize(), made.weight)


def foreign_folder(tmp_path: Path, method: str, **settings: Any) -> tuple[Path, dict[str, Tensor]]:
    """A checkpoint whose linear layers are of this method, and the plain weights it stands for."""
    model = small(tmp_path)
    stored: dict[str, Tensor] = {}
    plain: dict[str, Tensor] = {}
    for seed, (name, tensor) in enumerate(weights.to_hugging_face(model.transformer, model.config).items()):
        if "_proj" not in name:
            stored[name] = plain[name] = tensor.clone()
            continue
        made = Foreign(*tensor.shape, 32, 4, seed)
        plain[name] = made.weight
        parts = made.gptq(4) if method == "gptq" else made.awq()
        stored |= {f"{name.removesuffix('weight')}{part}": value for part, value in parts.items()}
    home = tmp_path / method
    home.mkdir()
    save_file(stored, home / "model.safetensors")
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": 32} | settings
    (home / "config.json").write_text(json.dumps(config))
    return home, plain


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_whole_checkpoint_of_others(tmp_path: Path, method: str) -> None:
    home, plain = foreign_folder(tmp_path, method)
    wanted = labcore.load(tmp_path / "plain")
    for name, place in weights.places(wanted.config, weights.parameters_of(wanted.transformer)).items():
        place.of(weights.parameters_of(wanted.transformer)).copy_(plain[name])
    found = labcore.load(home)
    assert found.recipe == method
    assert isinstance(found.transformer.layers[0].attention.qkv_proj, QuantLinear)  # type: ignore[union-attr]
    found.transformer.fast = wanted.transformer.fast = False
    torch.testing.assert_close(
        labcore.logits(found, TOKENS), labcore.logits(wanted, TOKENS), rtol=1e-3, atol=1e-3
    )
    assert found.weight_bytes < 0.5 * wanted.weight_bytes


def test_parts_that_disagree_stand_side_by_side(tmp_path: Path) -> None:
    home, _ = foreign_folder(tmp_path, "gptq")
    from safetensors.torch import load_file

    stored = load_file(home / "model.safetensors")
    name = "model.layers.1.self_attn.k_proj"
    made = Foreign(32, 64, 32, 4, 77, np.random.default_rng(5).permutation(np.arange(64) // 32))
    stored |= {f"{name}.{part}": value for part, value in made.gptq(4).items()}
    save_file(stored, home / "model.safetensors")
    model = labcore.load(home)
    layer = model.transformer.layers[1].attention.qkv_proj  # type: ignore[union-attr]
    assert isinstance(layer, Stacked)
    x = torch.randn(2, 64)
    torch.testing.assert_close(layer.parts[1].reference(x), x @ made.weight.T, rtol=1e-4, atol=1e-4)  # type: ignore
    assert len(labcore.generate(model, [1, 2, 3], max_new_tokens=4, ignore_eos=True).tokens) == 4
    with pytest.raises(CheckpointError, match="held in parts"):
        save_quantized(model, tmp_path / "saved")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 3}, "has 3-bit GPTQ codes"),
        ({"bits": 8}, "do not fit 8 bits"),
        ({"group_size": 128}, "do not fit 4 bits in groups of 128"),
        ({"quant_method": "bitsandbytes"}, "stored quantized by 'bitsandbytes'; labcore reads"),
        ({"quant_method": "awq", "version": "gemv"}, "version 'gemv'"),
    ],
)
def test_packings_that_are_not_read(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    home, _ = foreign_folder(tmp_path, "gptq", **settings)
    with pytest.raises(CheckpointError, match=message):
        labcore.load(home)


def test_codes_without_scales(tmp_path: Path) -> None:
    home, _ = foreign_folder(tmp_path, "awq")
    from safetensors.torch import load_file

    stored = load_file(home / "model.safetensors")
    del stored["model.layers.0.mlp.up_proj.scales"]
    save_file(stored, home / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks model.layers.0.mlp.up_proj.scales"):
        labcore.load(home)


# GGUF


@given(st.sampled_from(sorted(BLOCKS)), st.integers(0, 999))
def test_blocks_stand_for_what_the_gguf_library_says(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = BLOCKS[kind][1]
    raw = rng.integers(0, 256, (4, 3 * size), dtype=np.uint8)
    for place in {"Q4_K": (0, 2), "Q6_K": (208,)}.get(kind, (0,)):
        halves = rng.normal(0, 0.1, (4, 3, 1)).astype(np.float16)
        raw.reshape(4, 3, size)[..., place : place + 2] = halves.view(np.uint8)
    wanted = gguf.quants.dequantize(raw, getattr(gguf.GGMLQuantizationType, kind))
    assert np.array_equal(from_blocks(kind, torch.from_numpy(raw)).dequantize().numpy(), wanted)


@pytest.mark.parametrize("case", ["llama", "llama-tied", "qwen2", "qwen3", "mistral-head-dim"])
def test_a_plain_file_is_the_model(tmp_path: Path, case: str) -> None:
    model = small(tmp_path, case)
    again = labcore.load(write_gguf(model, tmp_path / "model.gguf", "f32"))
    torch.testing.assert_close(
        labcore.logits(again, TOKENS), labcore.logits(model, TOKENS), rtol=1e-4, atol=1e-4
    )
    assert not again.recipe


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_a_quantized_file_is_what_its_library_reads(tmp_path: Path, kind: str) -> None:
    model = small(tmp_path, "llama")
    path = write_gguf(model, tmp_path / "model.gguf", kind)
    wanted = small(tmp_path, "llama")
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for name, place in weights.places(wanted.config, weights.parameters_of(wanted.transformer)).items():
        module, _, leaf = name.rpartition(".")
        tensor = stored[f"{gguf_name(module)}.{leaf}"]
        dense = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        if module.endswith(("q_proj", "k_proj")):  # neighbouring pairs -> halves
            d = wanted.config.head_dim
            dense = torch.stack([dense.unflatten(0, (-1, d))[:, i::2] for i in (0, 1)], 1).flatten(0, 2)
        place.of(weights.parameters_of(wanted.transformer)).copy_(dense)
    found = labcore.load(path)
    assert found.recipe == f"gguf {kind.upper()}"
    found.transformer.fast = wanted.transformer.fast = False
    torch.testing.assert_close(
        labcore.logits(found, TOKENS), labcore.logits(wanted, TOKENS), rtol=1e-3, atol=1e-3
    )


def test_llama_cpp_computes_the_same(tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    model = labcore.load("story", dtype="float32")
    path = write_gguf(model, tmp_path / "model.gguf", "f32")
    theirs = llama_cpp.Llama(str(path), n_ctx=64, n_threads=1, logits_all=True, verbose=False)
    theirs.eval(TOKENS[0])
    found = torch.tensor(theirs.scores[: len(TOKENS[0])]).float()
    wanted = labcore.logits(model, TOKENS)[0]
    assert (found - wanted).norm() < 0.005 * wanted.norm()


def test_files_that_are_not_read(tmp_path: Path) -> None:
    model = small(tmp_path)
    path = write_gguf(model, tmp_path / "model.gguf", "f32")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 3])
    with pytest.raises(CheckpointError, match="cut short"):
        labcore.load(path)
    path.write_bytes(b"not a model at all")
    with pytest.raises(CheckpointError, match="no GGUF file"):
        labcore.load(path)
    odd = tmp_path / "odd.gguf"
    writer = gguf.GGUFWriter(odd, "llama")
    kind = gguf.GGMLQuantizationType.Q5_0
    writer.add_tensor(
        "token_embd.weight", gguf.quants.quantize(np.ones((4, 32), np.float32), kind), raw_dtype=kind
    )
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    with pytest.raises(CheckpointError, match="stored as Q5_0; labcore reads F32"):
        labcore.load(odd)


def test_models_that_are_not_written(tmp_path: Path) -> None:
    model = small(tmp_path, intermediate_size=80)
    with pytest.raises(CheckpointError, match="no kind 'q5_0'"):
        write_gguf(model, tmp_path / "x.gguf", "q5_0")
    with pytest.raises(CheckpointError, match="blocks of 32"):
        write_gguf(model, tmp_path / "x.gguf", "q4_0")
    with pytest.raises(CheckpointError, match="biases on its output"):
        write_gguf(small(tmp_path, "llama-biases"), tmp_path / "x.gguf", "f32")
    labcore.quantize(model, "int8", progress=False)
    with pytest.raises(CheckpointError, match="quantized already"):
        write_gguf(model, tmp_path / "x.gguf", "f32")
    assert not (tmp_path / "x.gguf").exists()
