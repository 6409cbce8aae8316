"""Quantized checkpoints: our own, GPTQ's, AWQ's and GGUF, each against an independent dequantization."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import labcore
from labcore.errors import CheckpointError
from labcore.model import Model, save_quantized, weights
from labcore.model.gguf_file import gguf_name
from labcore.model.gguf_writing import write_gguf
from labcore.quant.gguf_blocks import BLOCKS, from_blocks
from tests import checkpoints
from tests.quant import foreign_folders
from tests.quant.foreign_folders import edit

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
    with pytest.raises(CheckpointError, match=r"lacks layers\.0\.mlp\.down_proj\.weight"):
        labcore.load(home)
    whole = (home / "model.safetensors").read_bytes()
    (home / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cut short"):
        labcore.load(home)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers.1.attention.qkv_proj.bias": None}, r"lacks layers\.1\.attention\.qkv_proj\.bias of the"),
        ({"layers.1.attention.qkv_proj.zero": None}, r"lacks layers\.1\.attention\.qkv_proj\.zero of the"),
        (
            {"layers.1.attention.o_proj.bias": torch.ones(64)},
            r"holds layers\.1\.attention\.o_proj\.bias that",
        ),
        ({"embed_tokens.weight": None}, r"lacks embed_tokens\.weight of the"),
        ({"lm_head.weight": torch.ones(320, 64)}, r"holds lm_head\.weight that"),
        (
            {"layers.0.mlp.down_proj.order": torch.arange(96) + 1},
            r"down_proj\.order is no order of its 96 colu",
        ),
    ],
)
def test_every_tensor_of_our_own_is_there_and_has_a_place(
    tmp_path: Path, changes: dict[str, Tensor | None], message: str
) -> None:
    model = small(tmp_path, "qwen2")
    labcore.quantize(model, "int4:group=16,symmetric=false", progress=False)
    edit(save_quantized(model, tmp_path / "saved"), **changes)
    with pytest.raises(CheckpointError, match=message):
        labcore.load(tmp_path / "saved")


# All kinds


def written(kind: str, home: Path) -> Path:
    """A tiny model of one kind: what to load."""
    if kind in ("gptq", "awq"):
        foreign_folders.write(home, kind)
        return home
    checkpoints.write("llama", home, shard_size="100KB" if kind == "shards" else "1GB")
    if kind in ("plain", "shards"):
        return home
    model = labcore.load(home)
    if kind.startswith("gguf"):
        return write_gguf(model, home / "model.gguf", kind.removeprefix("gguf-"))
    labcore.quantize(model, "int4:group=16", progress=False)
    return save_quantized(model, home)


@pytest.mark.parametrize("kind", ["plain", "shards", "own", "gptq", "awq", "gguf-f32", "gguf-q4_0"])
def test_a_file_that_is_cut_short_while_it_is_served(tmp_path: Path, kind: str) -> None:
    """Nothing of it is mapped any more: reading such memory would end the process (SIGBUS)."""
    model = labcore.load(written(kind, tmp_path), device="cpu", dtype="float32")
    if (maps := Path("/proc/self/maps")).exists():
        assert str(tmp_path) not in maps.read_text()
    before = labcore.generate(model, [1, 2, 3], max_new_tokens=4, ignore_eos=True).tokens
    for path in (*tmp_path.glob("*.safetensors"), *tmp_path.glob("*.gguf")):
        os.truncate(path, 0)
    assert labcore.generate(model, [1, 2, 3], max_new_tokens=4, ignore_eos=True).tokens == before


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


def metadata(path: Path, **entries: Any) -> Path:
    """A copy of a file with numbers in its metadata set; a dot in a name is written as two underscores."""
    reader = gguf.GGUFReader(path)
    changed = path.with_name("changed.gguf")
    writer = gguf.GGUFWriter(changed, "llama")
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")):
            kind, *sub_kind = field.types
            writer.add_key_value(field.name, field.contents(), kind, *(sub_kind[-1:]))
    for name, value in entries.items():
        key = name.replace("__", ".")
        writer.kv_data[0].pop(key, None)
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    return changed


def test_metadata_that_changes_what_is_computed(tmp_path: Path) -> None:
    """A chat model's answer ends with a turn, not with a text; what is not computed here is refused."""
    path = write_gguf(small(tmp_path), tmp_path / "model.gguf", "f32")
    ends = {"tokenizer__ggml__eos_token_id": 2, "tokenizer__ggml__eot_token_id": 9}
    assert labcore.load(metadata(path, **ends)).config.eos_token_ids == (2, 9)
    plain = metadata(path, llama__rope__scaling__factor=1.0, llama__rope__scale_linear=0.0)
    assert labcore.load(plain).config.rope_scaling.kind == "default"
    for entry in ({"llama__rope__scaling__factor": 4.0}, {"llama__rope__scale_linear": 2.0}):
        with pytest.raises(CheckpointError, match=r"stretches its rotary positions \('linear'\)"):
            labcore.load(metadata(path, **entry))
    with pytest.raises(CheckpointError, match="values of 8 numbers a head and keys of 16"):
        labcore.load(metadata(path, llama__attention__value_length=8))


def test_every_tensor_of_a_file_is_there_and_has_a_place(tmp_path: Path) -> None:
    path = write_gguf(small(tmp_path, "qwen2"), tmp_path / "model.gguf", "f32")
    whole = path.read_bytes()
    for name, other, message in [
        (b"blk.1.attn_k.bias", b"blk.1.attn_k.bios", r"model\.gguf lacks blk\.1\.attn_k\.bias of the"),
        (b"output_norm.weight", b"output_morn.weight", r"lacks output_norm\.weight of the"),
    ]:
        path.write_bytes(whole.replace(name, other))
        with pytest.raises(CheckpointError, match=message):
            labcore.load(path)
    path.write_bytes(whole.replace(b"qwen2.block_count\4\0\0\0\3", b"qwen2.block_count\4\0\0\0\2"))
    with pytest.raises(CheckpointError, match=r"holds blk\.2\..+ that its metadata has no place for"):
        labcore.load(path)


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
