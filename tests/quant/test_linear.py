"""Quantized layers: every path against the definition, inside a model and alone."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import labcore
from labcore import cache as caches
from labcore.config import ModelConfig
from labcore.errors import ConfigError
from labcore.kernels import native
from labcore.kernels.native import quantized as native_quantized
from labcore.model import Model, Transformer
from labcore.quant import choice
from labcore.quant.formats import Format, QuantizedTensor, from_integers, quantize_tensor
from labcore.quant.linear import QuantEmbedding, QuantLinear, Stacked, plain_linear, rounded

needs_compiler = pytest.mark.skipif(not native.available(), reason=native.status())


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rounded_in_groups(x: Tensor, size: int) -> Tensor:
    """As the kernel rounds a vector: each group's largest to 127.

    In steps 256 times as fine where the largest dwarfs the mean.
    """
    grouped = x.unflatten(-1, (-1, size))
    magnitudes = grouped.abs()
    largest = magnitudes.amax(-1, keepdim=True)
    fine = largest > min(native_quantized.CREST, 0.3 * size) * magnitudes.mean(-1, keepdim=True)
    step = torch.where(fine, largest / 127 / 256, largest / 127).clamp_min(1e-30)
    return ((grouped / step).round() * step).flatten(-2)


shapes = st.tuples(
    st.sampled_from([1, 15, 16, 17, 40]), st.sampled_from([48, 64, 192, 576]), st.integers(1, 70)
)


@needs_compiler
@given(
    shapes,
    st.sampled_from([8, 4]),
    st.booleans(),
    st.sampled_from([0, 16, 48]),
    st.booleans(),
    st.integers(0, 99),
)
def test_the_kernel_is_the_definition_on_rounded_vectors(
    shape: tuple[int, int, int], bits: int, symmetric: bool, group: int, biased: bool, seed: int
) -> None:
    rows, columns, tokens = shape
    if group and columns % group:
        group = 16
    fmt = Format(f"int{bits}", "group" if group else "channel", group, symmetric)
    held = quantize_tensor(random(rows, columns, seed=seed), fmt)
    bias = random(rows, seed=1) if biased else None
    smooth = random(columns, seed=2).abs() + 0.1
    order = torch.randperm(columns, generator=torch.Generator().manual_seed(seed))
    layer = QuantLinear(held, bias, smooth=smooth, order=order)
    x = random(tokens, columns, seed=seed + 1)
    matrix = layer.native_matrix()
    assert matrix is not None
    size = native_quantized.vector_group(group or columns)
    h = rounded_in_groups(x[:, order] * smooth, size)
    wanted = h @ held.dequantize().T + (0 if bias is None else bias)
    torch.testing.assert_close(matrix(x), wanted, rtol=5e-3, atol=1e-2 * float(wanted.abs().max()))
    one_by_one = torch.cat([matrix(row) for row in x.split(1)])
    assert torch.allclose(one_by_one, matrix(x), rtol=1e-5, atol=1e-4)


@needs_compiler
def test_activations_per_token_are_computed_in_integers_exactly() -> None:
    layer = QuantLinear(quantize_tensor(random(32, 96), Format()), activations="token")
    x = random(9, 96, seed=3)
    assert list(layer.paths(x)) == ["native", "reference"]
    torch.testing.assert_close(layer.paths(x)["native"](x), layer.reference(x), rtol=1e-3, atol=2e-2)


def test_torch_dynamic_int8_is_the_definition() -> None:
    layer = QuantLinear(quantize_tensor(random(32, 96), Format()), random(32), activations="tensor")
    x = random(9, 96, seed=3)
    found = layer.paths(x)["torch"](x)
    wanted = layer.reference(x)
    assert (found - wanted).norm() < 0.02 * wanted.norm()  # its activations are unsigned, with a zero point


@pytest.mark.parametrize("dtype", ["int3", "int2", "nf4", "fp8_e4m3", "fp8_e5m2"])
def test_formats_without_a_kernel_take_the_definition(dtype: str) -> None:
    fmt = Format(dtype) if dtype.startswith("fp8") else Format(dtype, "group", 16)
    layer = QuantLinear(quantize_tensor(random(8, 64), fmt))
    x = random(3, 64, seed=1)
    assert list(layer.paths(x)) == ["reference"]
    torch.testing.assert_close(layer(x), x @ layer.quantized.dequantize().T)
    assert torch.equal(plain_linear(layer)(x), layer(x))


def test_an_offset_in_place_of_a_zero_point() -> None:
    q = torch.randint(0, 16, (20, 64))
    scale, offset = random(20, 2).abs() + 0.1, random(20, 2, seed=5)
    held = from_integers(q, Format("int4", "group", 32), scale, None, offset)
    wanted = (q.unflatten(1, (2, 32)) * scale[..., None] + offset[..., None]).flatten(1)
    torch.testing.assert_close(held.dequantize(), wanted)
    x = random(5, 64, seed=6)
    layer = QuantLinear(held)
    assert (layer(x) - x @ wanted.T).norm() < 0.02 * (x @ wanted.T).norm()


def test_parts_side_by_side_and_an_embedding_of_codes() -> None:
    parts = [QuantLinear(quantize_tensor(random(n, 32, seed=n), Format())) for n in (4, 6)]
    x = random(2, 3, 32)
    assert torch.equal(Stacked(parts)(x), torch.cat([part(x) for part in parts], -1))
    tokens = torch.tensor([[0, 3]])
    held = parts[0].quantized
    assert torch.equal(QuantEmbedding(parts[0], torch.float32)(tokens), held.dequantize()[tokens])


def test_halves_of_settings_are_refused() -> None:
    held: QuantizedTensor = quantize_tensor(random(4, 32), Format())
    with pytest.raises(ConfigError, match="activation_scale"):
        QuantLinear(held, activations="static")
    with pytest.raises(ConfigError, match="Outlier columns"):
        QuantLinear(held, outliers=torch.tensor([1]))


def test_rounding_of_activations_with_a_static_scale_cuts_what_is_beyond() -> None:
    x = torch.tensor([[1.0, -300.0, 0.4]])
    assert torch.equal(rounded(x, "static", torch.tensor(1.0)), torch.tensor([[1.0, -127.0, 0.0]]))


def test_casting_the_model_leaves_codes_and_scales() -> None:
    layer = QuantLinear(quantize_tensor(random(4, 32), Format("fp8_e4m3")))
    layer.to(torch.bfloat16)
    assert layer.codes.dtype == torch.float8_e4m3fn
    assert layer.scale.dtype == torch.float32


# In a model

CONFIG = ModelConfig(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    intermediate_size=96, vocab_size=50, attention_bias=True, tie_word_embeddings=True,
)  # fmt: skip


def model(config: ModelConfig = CONFIG) -> Model:
    torch.manual_seed(0)
    transformer = Transformer(config).requires_grad_(False)
    for parameter in transformer.parameters():
        parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.2)
    return Model("small", config, transformer, None, random_weights=True)


@needs_compiler
@pytest.mark.parametrize(
    "recipe", ["int8", "int4:group=16", "int4:group=16,symmetric=false,head=same", "w8a8"]
)
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_the_fused_layers_compute_as_the_modules_do(recipe: str, batch: int) -> None:
    small = model()
    labcore.quantize(small, recipe, progress=False)
    tokens = torch.randint(50, (batch, 12), generator=torch.Generator().manual_seed(1))
    found = {}
    for fused in (True, False):
        transformer = small.transformer
        if not fused:
            transformer._native = False
            transformer._native_for = lambda x, packed: None  # type: ignore[method-assign]
        cache = caches.create("contiguous", CONFIG, batch_size=batch, capacity=16)
        with torch.inference_mode():
            prompt = transformer(tokens[:, :8], cache)
            steps = [transformer(tokens[:, i : i + 1], cache) for i in range(8, 12)]
        assert (transformer._native is not False) == fused
        found[fused] = torch.cat([prompt, *steps], 1)
    # sums in another order move a number over the edge between two codes, so single logits may differ
    assert (found[True] - found[False]).norm() < 5e-3 * found[False].norm()


@pytest.mark.parametrize(
    "kind", ["contiguous", "int8", "int4", "kivi2", "paged", "sliding_window:window=64", "none"]
)
def test_every_cache_goes_with_quantized_weights(kind: str) -> None:
    small = model()
    labcore.quantize(small, "int4:group=16", progress=False)
    out = labcore.generate(small, [1, 2, 3, 4], max_new_tokens=6, cache=kind, ignore_eos=True)
    plain = labcore.generate(small, [1, 2, 3, 4], max_new_tokens=6, ignore_eos=True)
    assert len(out.tokens) == 6
    if kind in ("paged", "none"):
        assert out.tokens == plain.tokens


def test_switching_off_what_is_fast_gives_the_definition() -> None:
    small = model()
    labcore.quantize(small, "int8", progress=False)
    plain = copy.deepcopy(small.transformer)
    for name, layer in list(plain.named_modules()):
        if isinstance(layer, QuantLinear):
            home, _, leaf = name.rpartition(".")
            setattr(plain.get_submodule(home), leaf, plain_linear(layer))
    plain.embed_tokens = nn.Embedding.from_pretrained(plain.lm_head.weight)
    small.transformer.fast = plain.fast = False
    exact = Model("plain", CONFIG, plain, None)
    torch.testing.assert_close(
        labcore.logits(small, [[1, 2, 3]]), labcore.logits(exact, [[1, 2, 3]]), rtol=1e-4, atol=1e-4
    )


# The choice of a path


def test_the_quickest_measured_path_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = [("int8", 1, "a", 2.0), ("int8", 1, "b", 1.0), ("int8", 64, "a", 1.0), ("int8", 64, "b", 2.0)]
    table = [choice.Timing(*row) for row in measured]
    monkeypatch.setitem(choice._tables, "cpu", table)
    choice._best.cache_clear()
    device = torch.device("cpu")
    assert choice.pick("int8", 7, device, ["a", "b"]) == "b"
    assert choice.pick("int8", 100, device, ["a", "b"]) == "a"
    assert choice.pick("int8 x int8", 1, device, ["b", "a"]) == "b"  # nothing measured: the first
    choice._best.cache_clear()


def test_the_table_is_measured_once_and_kept(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("LABCORE_CACHE", str(tmp_path))
    monkeypatch.setattr(choice, "_tables", {})
    monkeypatch.setattr(choice, "SIDES", {"cpu": 64})
    monkeypatch.setattr(choice, "TOKENS", (1, 2))
    first = choice.prepare(torch.device("cpu"))
    kinds = {"int8", "int8 x int8", "int4"}
    assert {(row.kind, row.tokens) for row in first} == {(kind, n) for kind in kinds for n in (1, 2)}
    assert len({(row.kind, row.tokens, row.path) for row in first}) == len(first)
    named = {row.path for row in first if row.kind == "int8 x int8"}
    assert named == {"reference", "torch"} | ({"native"} if native.available() else set())
    assert all(row.seconds > 0 for row in first)
    monkeypatch.setattr(choice, "_tables", {})
    monkeypatch.setattr(choice, "measure", lambda device: pytest.fail("measured again"))
    assert choice.prepare(torch.device("cpu")) == first
    choice._best.cache_clear()
