"""GPTQ's and AWQ's folders: what they stand for is loaded, and what is not understood is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import labcore
from labcore.errors import CheckpointError
from labcore.model import save_quantized
from labcore.quant.foreign import from_awq, from_gptq
from labcore.quant.linear import QuantLinear, Stacked
from tests import checkpoints
from tests.quant import foreign_folders as folders
from tests.quant.foreign_folders import Foreign, edit, packed_along_rows

TOKENS = [[1, 5, 9, 20, 7, 33, 250, 8, 8, 40]]
K_PROJ = "model.layers.1.self_attn.k_proj"


def refused(home: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        labcore.load(home)
    assert str(caught.value).endswith(".")


# One matrix


@given(st.sampled_from([8, 24, 64]), st.sampled_from([(32, 16), (64, 64), (96, 32)]), st.sampled_from([4, 8]),
       st.booleans(), st.sampled_from([1, 2]), st.integers(0, 999))  # fmt: skip
def test_gptq_codes_stand_for_what_their_tool_says(
    rows: int, columns: tuple[int, int], bits: int, shuffled: bool, version: int, seed: int
) -> None:
    width, group = columns
    g_idx = np.arange(width) // group
    if shuffled:
        np.random.default_rng(seed).shuffle(g_idx)
    matrix = Foreign(rows, width, group, bits, seed, g_idx)
    codes, order = from_gptq(**matrix.gptq(version), bits=bits, group=group, zero_offset=2 - version)
    layer = QuantLinear(codes, order=order)
    torch.testing.assert_close(layer.dense(), matrix.weight)
    x = torch.randn(3, width)
    torch.testing.assert_close(layer.reference(x), x @ matrix.weight.T, rtol=1e-4, atol=1e-4)


@given(st.sampled_from([8, 24, 64]), st.sampled_from([(32, 16), (64, 64)]), st.integers(0, 999))
def test_awq_codes_stand_for_what_their_tool_says(rows: int, columns: tuple[int, int], seed: int) -> None:
    matrix = Foreign(rows, *columns, 4, seed)
    codes = from_awq(**matrix.awq(), group=columns[1])
    torch.testing.assert_close(codes.dequantize(), matrix.weight)


def by_words(qzeros: list[int], bits: int = 4) -> torch.Tensor:
    """The weights of a matrix whose codes are all 8 and whose scales are all 1, one of each row."""
    rows = 32 // bits * len(qzeros)
    codes, _ = from_gptq(
        packed_along_rows(np.full((rows, 32), 8), bits).T.contiguous(),
        torch.tensor([qzeros], dtype=torch.int32),
        torch.ones(1, rows),
        None,
        bits=bits,
        group=-1,
    )
    return codes.dequantize()[:, 0]


def test_a_zero_point_of_0_borrows_from_its_neighbour() -> None:
    zeros = [0, 8, 8, 8, 8, 8, 8, 8]
    word = sum(zero << 4 * place for place, zero in enumerate(zeros)) - 0x11111111
    assert word == 0x7777776F
    assert by_words([word]).tolist() == [8, 0, 0, 0, 0, 0, 0, 0]
    assert by_words([0x77777777, -0x08888889]).tolist() == [0] * 15 + [8]  # the borrow leaves the word
    assert by_words([0x08080800 - 0x01010101], bits=8).tolist() == [8, 0, 0, 0]


def test_zero_points_that_their_tool_lost() -> None:
    """AutoGPTQ's -1 in 32 bits, or-ed into its place: what stood above it reads all ones."""
    with pytest.raises(CheckpointError, match="a layer has zero points whose tool lost them"):
        by_words([0x77 | -1 << 8])


@pytest.mark.parametrize("part", ["qweight", "qzeros", "scales"])
def test_codes_of_another_type(part: str) -> None:
    parts = Foreign(8, 32, 16, 4, 0).gptq()
    parts[part] = parts[part].to(torch.int64)
    with pytest.raises(CheckpointError, match=rf"a layer\.{part} is .+ of int64; labcore reads"):
        from_gptq(**parts, group=16)


def test_groups_that_do_not_divide() -> None:
    parts = Foreign(8, 48, 16, 4, 0).gptq()
    parts |= {name: parts[name][:2] for name in ("qzeros", "scales")}
    with pytest.raises(CheckpointError, match="do not fit 4 bits in groups of 32"):
        from_gptq(**parts, group=32)


# Whole folders


def own_head(home: Path, weights: dict[str, Any]) -> None:
    checkpoints.edit_config(home, tie_word_embeddings=True)


def zero_biases(home: Path, weights: dict[str, Any]) -> None:
    edit(home, **{f"{K_PROJ}.bias": torch.zeros(32), "model.layers.0.mlp.up_proj.bias": torch.zeros(96)})


def as_auto_gptq(home: Path, weights: dict[str, Any]) -> None:
    folders.as_auto_gptq(home)


def as_auto_awq(home: Path, weights: dict[str, Any]) -> None:
    old = {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}
    (home / "quant_config.json").write_text(json.dumps(old))
    checkpoints.edit_config(home, quantization_config=...)


def partly_plain(home: Path, weights: dict[str, Any]) -> None:
    """One layer that the tool left alone."""
    stored = load_file(home / "model.safetensors")
    weights[f"{K_PROJ}.weight"] = plain = torch.randn(32, 64) / 8
    edit(home, **{name: None for name in stored if name.startswith(K_PROJ)} | {f"{K_PROJ}.weight": plain})


def as_it_is(home: Path, weights: dict[str, Any]) -> None:
    pass


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        ({"method": "gptq"}, as_it_is),
        ({"method": "awq"}, as_it_is),
        ({"method": "gptq", "version": 2, "checkpoint_format": "gptq_v2", "bits": 8}, as_it_is),
        ({"method": "gptq", "symmetric": True, "sym": True, "group": -1, "desc_act": True}, as_it_is),
        ({"method": "awq", "symmetric": True, "zero_point": False, "version": "GEMM"}, as_it_is),
        ({"method": "gptq", "case": "qwen2", "dynamic": {"-:.*lm_head": {}}}, as_it_is),
        ({"method": "gptq", "case": "qwen2-tied"}, as_it_is),
        ({"method": "gptq", "head": True}, as_it_is),
        ({"method": "gptq", "head": True}, own_head),
        ({"method": "awq", "head": True}, own_head),
        ({"method": "gptq"}, own_head),
        ({"method": "gptq"}, zero_biases),
        ({"method": "awq", "modules_to_not_convert": ["k_proj"]}, partly_plain),
        ({"method": "gptq"}, as_auto_gptq),
        ({"method": "awq"}, as_auto_awq),
    ],
    ids=lambda value: getattr(value, "__name__", None) or "-".join(map(str, value.values())),
)  # fmt: skip
def test_a_whole_checkpoint_of_others(
    tmp_path: Path, settings: dict[str, Any], change: Callable[[Path, dict[str, Any]], None]
) -> None:
    """The logits are transformers', with the weights that the codes stand for."""
    if settings.get("version") == "GEMM":
        weights = folders.write(tmp_path, **{key: v for key, v in settings.items() if key != "version"})
        folders.describe(tmp_path, version="GEMM")
    else:
        weights = folders.write(tmp_path, **settings)
    change(tmp_path, weights)
    model = labcore.load(tmp_path, dtype="float32", device="cpu")
    assert model.recipe == settings["method"]
    assert isinstance(model.transformer.layers[0].attention.qkv_proj, QuantLinear)  # type: ignore[union-attr]
    assert isinstance(model.transformer.lm_head, QuantLinear) == bool(settings.get("head"))
    model.transformer.fast = False
    wanted = folders.expected_logits(settings.get("case", "llama"), weights, TOKENS)
    torch.testing.assert_close(labcore.logits(model, TOKENS), wanted, rtol=1e-3, atol=1e-3)
    tied = settings.get("case") == "qwen2-tied"
    assert model.config.tie_word_embeddings == tied


def test_parts_that_disagree_stand_side_by_side(tmp_path: Path) -> None:
    folders.write(tmp_path, "gptq")
    matrix = Foreign(32, 64, 32, 4, 77, np.random.default_rng(5).permutation(np.arange(64) // 32))
    edit(tmp_path, **{f"{K_PROJ}.{part}": value for part, value in matrix.gptq().items()})
    model = labcore.load(tmp_path)
    layer = model.transformer.layers[1].attention.qkv_proj  # type: ignore[union-attr]
    assert isinstance(layer, Stacked)
    x = torch.randn(2, 64)
    torch.testing.assert_close(layer.parts[1].reference(x), x @ matrix.weight.T, rtol=1e-4, atol=1e-4)  # type: ignore
    assert len(labcore.generate(model, [1, 2, 3], max_new_tokens=4, ignore_eos=True).tokens) == 4
    with pytest.raises(CheckpointError, match="held in parts"):
        save_quantized(model, tmp_path / "saved")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 3}, "has 3-bit GPTQ codes"),
        ({"bits": 8}, "do not fit 8 bits"),
        ({"bits": "4"}, r"has bits '4' in its quantization_config; labcore reads a whole number"),
        ({"group_size": 128}, "do not fit 4 bits in groups of 128"),
        ({"group_size": None}, "has group_size None"),
        ({"sym": "yes"}, "has sym 'yes' .+ reads true or false"),
        ({"sym": True}, "zero points from 0 to 15, where .+ symmetric codes, whose zero point is 8"),
        ({"quant_method": "bitsandbytes"}, "stored quantized by 'bitsandbytes'; labcore reads"),
        ({"quant_method": ...}, "stored quantized by None"),
        ({"quant_method": ["gptq"]}, r"stored quantized by \['gptq'\]"),
        ({"quant_method": "awq", "version": "gemv"}, "packed in awq's version 'gemv'; labcore reads 'gemm'"),
        ({"quant_method": "awq", "backend": "llm-awq"}, "has backend 'llm-awq'"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format 'marlin'; labcore reads 'gptq' and 'gptq_v2'"),
        (
            {"checkpoint_format": "gptq", "format": "gptq_v2"},
            "states checkpoint_format 'gptq' and format 'gpt",
        ),
        ({"is_marlin_format": True}, "has is_marlin_format True"),
        ({"pack_dtype": "int16"}, "has pack_dtype 'int16' .+ reads int32"),
        ({"dynamic": {"+:.*down_proj": {"bits": 8}}}, r"quantizes \+:\.\*down_proj by settings of its own"),
        ({"dynamic": 7}, "has dynamic 7"),
    ],
)
def test_packings_that_are_not_read(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    folders.write(tmp_path, "gptq")
    folders.describe(tmp_path, **settings)
    refused(tmp_path, message)


@pytest.mark.parametrize("stored", ["awq", 4, ["gptq"], 0, ""])
def test_a_description_that_is_none(tmp_path: Path, stored: Any) -> None:
    folders.write(tmp_path, "gptq")
    checkpoints.edit_config(tmp_path, quantization_config=stored)
    refused(tmp_path, "as its quantization_config, which is no table of settings")


@pytest.mark.parametrize(
    ("case", "tensors", "message"),
    [
        ("llama", {f"{K_PROJ}.scales": None}, rf"lacks {K_PROJ}\.scales of the"),
        ("llama", {f"{K_PROJ}.qweight": None}, rf"lacks {K_PROJ}\.qweight of the"),
        ("llama", {"lm_head.weight": None}, r"lacks lm_head\.weight of the"),
        ("qwen2-tied", {"model.embed_tokens.weight": None}, r"lacks model\.embed_tokens\.weight of the"),
        ("qwen2", {f"{K_PROJ}.bias": None}, rf"lacks {K_PROJ}\.bias of the"),
        ("qwen2", {f"{K_PROJ}.bias": torch.ones(31)}, rf"{K_PROJ}\.bias has shape \[31\]"),
        ("llama", {f"{K_PROJ}.bias": torch.ones(32)}, rf"holds {K_PROJ}\.bias that its config\.json has no"),
        ("llama", {f"{K_PROJ}.weight": torch.ones(32, 64)}, rf"holds {K_PROJ}\.weight that"),
        ("llama", {f"{K_PROJ}.lora_A": torch.ones(4, 64)}, rf"holds {K_PROJ}\.lora_A that"),
        ("llama", {"model.layers.3.mlp.up_proj.qweight": torch.ones(2)}, r"holds model\.layers\.3\.mlp\.up"),
        (
            "llama",
            {f"{K_PROJ}.{part}": value for part, value in Foreign(48, 64, 32, 4, 1).gptq().items()},
            rf"{K_PROJ}\.weight has shape \[48, 64\] in the checkpoint, and its .+ \[32, 64\]",
        ),
    ],
)  # fmt: skip
def test_every_tensor_is_there_and_has_a_place(
    tmp_path: Path, case: str, tensors: dict[str, Any], message: str
) -> None:
    folders.write(tmp_path, "gptq", case=case)
    edit(tmp_path, **tensors)
    refused(tmp_path, message)


def test_the_second_format_under_the_first_ones_name(tmp_path: Path) -> None:
    folders.write(tmp_path, "gptq", version=2, symmetric=True, sym=True)
    refused(tmp_path, "zero points from 9 to 9, where .+ whose zero point is 8; .+ gptq or gptq_v2")


def test_an_order_of_inputs_that_is_not_there(tmp_path: Path) -> None:
    folders.write(tmp_path, "gptq", desc_act=True)
    edit(tmp_path, **{f"{K_PROJ}.g_idx": None})
    refused(tmp_path, rf"lacks {K_PROJ}\.g_idx")


def test_plain_weights_under_a_description_of_codes(tmp_path: Path) -> None:
    checkpoints.write("llama", tmp_path)
    checkpoints.edit_config(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})
    refused(tmp_path, "says that its weights are gptq codes, and holds none")


def test_an_older_description(tmp_path: Path) -> None:
    folders.write(tmp_path, "gptq")
    checkpoints.edit_config(tmp_path, quantization_config=...)
    refused(tmp_path, r"lacks model\.layers\.0\.self_attn\.q_proj\.weight")  # codes that nothing describes
    (tmp_path / "quantize_config.json").write_text("[4")
    refused(tmp_path, r"quantize_config\.json in .+ is no description of codes")
    (tmp_path / "quantize_config.json").write_text('{"bits": 4, "quant_method": "marlin"}')
    refused(tmp_path, "stored quantized by 'marlin'")
