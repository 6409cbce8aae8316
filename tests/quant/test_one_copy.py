"""A quantized layer holds its codes once: in rows as they are stored, or in blocks for the C kernel."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import labcore
from labcore.kernels import native
from labcore.kernels.native import quantized as native_quantized
from labcore.model import Model, save_quantized
from labcore.quant import fast_paths
from labcore.quant.formats import Format, QuantizedTensor, from_integers, quantize_tensor
from labcore.quant.linear import QuantEmbedding, QuantLinear, plain_linear

pytestmark = pytest.mark.skipif(not native.available(), reason=native.status())
FORMATS = (
    "int8", "int8:granularity=tensor", "int8:symmetric=false", "int8:group=32",
    "int4:granularity=channel", "int4:granularity=tensor", "int4:group=16",
    "int4:group=32,symmetric=false", "offset",
)  # fmt: skip
rows_of_all_kinds = st.sampled_from([1, 5, 15, 16, 17, 32, 43])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def held(fmt: str, rows: int, columns: int, seed: int = 0) -> QuantizedTensor:
    """A random matrix; "offset": 4 bits with a lowest value for each group, as foreign formats have it."""
    weight = random(rows, columns, seed=seed) + 0.5
    if fmt != "offset":
        return quantize_tensor(weight, Format.parse(fmt))
    generator = torch.Generator().manual_seed(seed)
    q = torch.randint(0, 16, (rows, columns), generator=generator)
    groups = columns // 16
    return from_integers(
        q, Format("int4", "group", 16), weight[:, :groups].abs() + 0.1, None, weight[:, -groups:]
    )


def laid(weight: QuantizedTensor, **parts: Any) -> tuple[QuantLinear, native.Matrix]:
    """A layer that the kernel took, and what it reads."""
    layer = QuantLinear(weight, **parts)
    matrix = layer.native_matrix()
    assert matrix is not None
    assert fast_paths.lies_in_blocks(layer.codes)
    return layer, matrix


def tensors_of(thing: Any) -> Iterator[Tensor]:
    """All that a layer can reach."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, (nn.Module, native.Matrix)):
        yield from tensors_of(vars(thing))
    elif isinstance(thing, (dict, list, tuple)):
        for part in thing.values() if isinstance(thing, dict) else thing:
            yield from tensors_of(part)


def reachable_bytes(thing: Any) -> int:
    """Of all memory that it keeps alive, each stretch once."""
    kept = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors_of(thing)}
    return sum(storage.nbytes() for storage in kept.values())


# The layout


@given(rows_of_all_kinds, st.sampled_from([16, 48, 64, 192]), st.sampled_from([8, 4]), st.integers(0, 99))
def test_the_layout_has_an_exact_inverse(rows: int, columns: int, bits: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8, generator=generator)
    blocks = native_quantized.laid_out(codes, bits)
    assert blocks.shape == (-(-rows // 16), columns * bits // 32, 16, 4)
    back = native_quantized.unlaid(blocks, bits, rows)
    assert torch.equal(back, codes)
    assert back.is_contiguous()
    assert back.untyped_storage().nbytes() == codes.numel()
    indices = torch.randint(rows, (7,), generator=generator)
    assert torch.equal(native_quantized.rows_of(blocks, bits, indices), codes[indices])


def test_where_a_code_lies() -> None:
    codes = torch.arange(32)[:, None] * 16 + torch.arange(16)  # row and column can be read off
    blocks = native_quantized.laid_out(codes.to(torch.uint8), 8)
    row, column = 21, 6
    assert int(blocks[row // 16, column // 4, row % 16, column % 4]) == (row * 16 + column) % 256
    fours = native_quantized.laid_out((codes % 16).to(torch.uint8), 4)
    assert int(fours[1, 0, 5, 2]) == 2 | 6 << 4  # columns 2 and 6 of row 21


# One layer


@given(st.sampled_from(FORMATS), rows_of_all_kinds, st.sampled_from([48, 64, 192]), st.booleans())
def test_codes_are_held_once_and_the_layer_is_the_same(
    fmt: str, rows: int, columns: int, biased: bool
) -> None:
    columns = 64 if "32" in fmt else columns
    weight, bias = held(fmt, rows, columns), random(rows, seed=1) if biased else None
    plain = QuantLinear(weight, bias)
    before, stored = reachable_bytes(plain), plain.state_dict()
    layer, matrix = laid(weight, bias=bias)
    assert matrix.codes is layer.codes
    assert matrix._matrix.codes == layer.codes.data_ptr()
    filling = layer.codes.nbytes - weight.codes.nbytes
    assert filling == -rows % 16 * weight.codes.shape[1]
    assert reachable_bytes(layer) <= before + filling + matrix.nbytes - layer.codes.nbytes
    assert layer.native_matrix() is matrix
    same(layer, plain, random(3, columns, seed=2))
    assert layer.nbytes == plain.nbytes == weight.nbytes + (0 if bias is None else bias.nbytes)
    found = layer.state_dict()
    assert found.keys() == stored.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, stored[name])
        assert tensor.is_contiguous()


def same(layer: QuantLinear, plain: QuantLinear, x: Tensor) -> None:
    """To the last bit, by definition."""
    wanted = plain.quantized
    for name, tensor in layer.quantized.tensors().items():
        assert torch.equal(tensor, getattr(wanted, name))
    assert layer.quantized.effective_bits == wanted.effective_bits
    assert torch.equal(layer.dense(), plain.dense())
    assert torch.equal(layer.reference(x), plain.reference(x))
    assert torch.equal(plain_linear(layer)(x), plain_linear(plain)(x))
    layer.fast = plain.fast = False
    assert torch.equal(layer(x), plain(x))
    layer.fast = plain.fast = True


@given(st.sampled_from(FORMATS), rows_of_all_kinds, st.integers(0, 99))
def test_rows_are_looked_up_in_either_layout(fmt: str, rows: int, seed: int) -> None:
    plain = QuantLinear(held(fmt, rows, 64, seed=seed))
    layer, _ = laid(held(fmt, rows, 64, seed=seed))
    tokens = torch.randint(rows, (2, 3), generator=torch.Generator().manual_seed(seed))
    whole = plain.dense()
    for dtype in (torch.float32, torch.bfloat16):
        wanted = whole[tokens].to(dtype)
        for one in (layer, plain) if rows > 1 else (layer,):  # one stored row is looked up once only
            found = QuantEmbedding(one, dtype)(tokens)
            assert found.dtype == dtype
            if one is layer and dtype == torch.float32:  # in C, whose scales within a row are fp16
                torch.testing.assert_close(found, wanted, rtol=0, atol=2e-3 * float(whole.abs().max()))
                one.fast = False
                found = QuantEmbedding(one, dtype)(tokens)
                one.fast = True
            assert torch.equal(found, wanted)
    assert torch.equal(layer.rows(torch.tensor([-1, -rows]), torch.float32), whole[[-1, -rows]])
    assert layer.rows(tokens[:, :0], torch.float32).shape == (2, 0, 64)
    for bad in (-1, rows):
        with pytest.raises(IndexError, match=rf"no rows in a table of {rows}"):
            QuantEmbedding(layer, torch.float32)(torch.tensor([[0, bad]]))


@pytest.mark.parametrize("fmt", FORMATS)
def test_what_fills_up_a_block_is_no_row(fmt: str) -> None:
    layer, _ = laid(held(fmt, 43, 64))
    for beyond in (43, 47, 48, -44, -49):
        with pytest.raises(IndexError):
            layer.rows(torch.tensor([0, beyond]), torch.float32)


@pytest.mark.parametrize("fmt", ["int8", "int4:group=16"])
def test_looking_up_rows_reads_only_them(fmt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, _ = laid(held(fmt, 4096, 64))
    wanted = layer.quantized.rows(torch.tensor([[4000, 7]]), torch.float32)
    monkeypatch.setattr(native_quantized, "unlaid", lambda *args: pytest.fail("all rows were read"))
    with torch.profiler.profile(profile_memory=True) as profile:
        assert torch.equal(layer.rows(torch.tensor([[4000, 7]]), torch.float32), wanted)
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert 0 < largest < layer.codes.nbytes / 20


@pytest.mark.parametrize("fmt", FORMATS)
def test_codes_are_loaded_over_codes_in_blocks(fmt: str) -> None:
    layer, old = laid(held(fmt, 43, 64))
    other, wanted = laid(held(fmt, 43, 64, seed=5))
    x = random(3, 64)
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer.codes, other.quantized.codes)  # in rows until the kernel takes them again
    new = layer.native_matrix()
    assert new is not None
    assert new is not old
    assert new.codes is layer.codes
    assert torch.equal(new(x), wanted(x))
    same(layer, other, x)


def through_pickle(layer: QuantLinear) -> QuantLinear:
    again: QuantLinear = pickle.loads(pickle.dumps(layer))
    return again


def through_torch_save(layer: QuantLinear) -> QuantLinear:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    again: QuantLinear = torch.load(file, weights_only=False)
    return again


@pytest.mark.parametrize("fmt", ["int8", "int4:group=16", "offset"])
@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle, through_torch_save])
def test_copies_hold_codes_of_their_own(fmt: str, copied: Callable[[QuantLinear], QuantLinear]) -> None:
    layer, matrix = laid(held(fmt, 43, 64))
    other, x = copied(layer), random(3, 64)
    assert other.codes.data_ptr() != layer.codes.data_ptr()
    theirs = other.native_matrix()
    assert theirs is not None
    assert theirs.codes is other.codes
    assert torch.equal(theirs(x), matrix(x))
    other.codes.zero_()
    assert not torch.equal(theirs(x), matrix(x))
    same(layer, QuantLinear(held(fmt, 43, 64)), x)


@pytest.mark.parametrize("fmt", ["int8", "int4:group=16", "offset"])
@pytest.mark.parametrize("target", ["cpu", torch.bfloat16])
def test_moved_layers_have_stored_codes_until_the_kernel_takes_them(fmt: str, target: Any) -> None:
    layer, matrix = laid(held(fmt, 43, 64))
    x, wanted = random(3, 64), held(fmt, 43, 64)
    found = matrix(x)
    layer.to(target)
    assert torch.equal(layer.codes, wanted.codes)
    assert layer.scale.dtype == wanted.scale.dtype
    again = layer.native_matrix()
    assert again is not None
    assert again is not matrix
    assert torch.equal(again(x), found)


def test_codes_put_in_place_of_others_are_noticed() -> None:
    layer, old = laid(held("int8", 32, 64))
    other, wanted = laid(held("int8", 32, 64, seed=5))
    layer.codes, layer.scale = other.codes, other.scale
    x = random(3, 64)
    new = layer.native_matrix()
    assert new is not None
    assert new is not old
    assert torch.equal(new(x), wanted(x))


def test_codes_laid_out_in_inference_mode_are_written_to_outside() -> None:
    layer = QuantLinear(held("int8", 32, 64))
    with torch.inference_mode():
        layer(random(3, 64))
    assert fast_paths.lies_in_blocks(layer.codes)
    assert not layer.codes.is_inference()
    copy.deepcopy(layer).codes.zero_()


def test_paths_that_want_rows_get_them() -> None:
    """PyTorch's dynamic product and a GPU's int8 one, on codes that lie in blocks."""
    x, weight = random(3, 64), held("int8", 48, 64)
    layer, _ = laid(weight, activations="token")
    torch.testing.assert_close(fast_paths.int8(layer, x), layer.reference(x))
    assert torch.equal(fast_paths.dynamic(layer, x), fast_paths.dynamic(QuantLinear(weight), x))


def test_without_the_kernel_blocks_are_still_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle from a machine with a compiler, on one without."""
    layer = copy.deepcopy(laid(held("int4:group=16", 43, 64))[0])
    x, plain = random(3, 64), QuantLinear(held("int4:group=16", 43, 64))
    monkeypatch.setattr(native_quantized, "library", lambda: None)
    assert layer.native_matrix() is None
    assert list(layer.paths(x)) == ["reference"]
    assert torch.equal(layer(x), plain.reference(x))


def test_formats_without_a_kernel_stay_as_they_are() -> None:
    for fmt in ("int3:group=16", "nf4:group=16", "fp8_e4m3"):
        layer = QuantLinear(quantize_tensor(random(8, 64), Format.parse(fmt)))
        codes = layer.codes
        layer(random(3, 64))
        assert layer.codes is codes
        assert layer.nbytes == layer.quantized.nbytes


# Whole models


def quantized_story(recipe: str, dtype: str = "float32", scaled: float = 1.0) -> Model:
    """scaled: what its layers' weights are multiplied by first, for another model of the same shapes."""
    model = labcore.load("story", dtype=dtype)
    for layer in model.transformer.layers:
        for parameter in layer.parameters():
            parameter.mul_(scaled)
    labcore.quantize(model, recipe, progress=False)
    return model


def layers_of(model: Model) -> list[QuantLinear]:
    return [module for module in model.transformer.modules() if isinstance(module, QuantLinear)]


@pytest.mark.parametrize(
    "recipe", ["int8", "int4:group=32", "int4:group=32,symmetric=false,head=same", "w8a8"]
)
def test_a_model_takes_about_what_it_stores(recipe: str) -> None:
    model = quantized_story(recipe)
    layers = layers_of(model)
    assert all(fast_paths.lies_in_blocks(layer.codes) for layer in layers)
    stored = sum(layer.quantized.codes.nbytes for layer in layers)
    codes = sum(tensor.untyped_storage().nbytes() for tensor in codes_reached(layers))
    assert stored <= codes < 1.01 * stored
    state = model.transformer.state_dict()
    if model.config.tie_word_embeddings:
        assert "embed_tokens.weight" not in state
    assert model.weight_bytes == sum(tensor.nbytes for tensor in state.values())


def codes_reached(layers: list[QuantLinear]) -> list[Tensor]:
    """Every stretch of bytes that the layers keep alive and that could be codes."""
    reached = [tensor for tensor in tensors_of(layers) if tensor.dtype in (torch.uint8, torch.int8)]
    grids = {id(layer.zero) for layer in layers}
    return list({tensor.data_ptr(): tensor for tensor in reached if id(tensor) not in grids}.values())


@pytest.mark.parametrize("recipe", ["int8", "int4:group=32"])
def test_a_model_in_blocks_is_saved_and_loaded(tmp_path: Path, recipe: str) -> None:
    model = quantized_story(recipe)
    tokens = [[1, 5, 9, 200]]
    wanted = labcore.logits(model, tokens)
    again = labcore.load(save_quantized(model, tmp_path), dtype="float32")
    assert torch.equal(labcore.logits(again, tokens), wanted)
    assert again.weight_bytes == model.weight_bytes
    assert copy.deepcopy(model.transformer).state_dict().keys() == model.transformer.state_dict().keys()


def test_decoding_notices_codes_that_were_loaded() -> None:
    model, other = quantized_story("int8"), quantized_story("int8", scaled=0.7)
    prompt: dict[str, Any] = {"max_new_tokens": 12, "ignore_eos": True}
    before, wanted = (labcore.generate(one, [1, 5, 9], **prompt).tokens for one in (model, other))
    assert before != wanted
    native_twin = model.transformer._native
    assert native_twin
    model.transformer.load_state_dict(other.transformer.state_dict())
    assert not native_twin.current()
    assert labcore.generate(model, [1, 5, 9], **prompt).tokens == wanted


def test_a_model_that_the_kernels_do_not_compute_is_not_laid_out() -> None:
    model = quantized_story("int8", dtype="bfloat16")
    labcore.logits(model, [[1, 5, 9]])
    assert not any(fast_paths.lies_in_blocks(layer.codes) for layer in layers_of(model))
