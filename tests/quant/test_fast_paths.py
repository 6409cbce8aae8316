"""Every fast path of a quantized layer against its definition, a GPU's too where torch has them on a CPU."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import labcore
from labcore.kernels import scaled
from labcore.model import save_quantized
from labcore.quant import choice, fast_paths
from labcore.quant.fast_paths import signed, stored
from labcore.quant.formats import Format, quantize_tensor
from labcore.quant.linear import QuantLinear
from labcore.quant.outliers import split
from tests.kernels.interpreter import interpreted, needs_triton, without_gpu

CUDA = torch.device("cuda")
ROWS, COLUMNS = 48, 64


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(
    dtype: str = "int8",
    activations: Any = "token",
    *,
    granularity: Any = "channel",
    bias: bool = False,
    smooth: bool = False,
    order: bool = False,
    outliers: bool = False,
    seed: int = 0,
) -> QuantLinear:
    """A random layer of 48 x 64; with outliers, columns 3 and 40 are apart."""
    fmt, weight = Format(dtype, granularity), random(ROWS, COLUMNS, seed=seed)
    parts: dict[str, Any] = {"bias": random(ROWS, seed=seed + 1) if bias else None}
    parts["smooth"] = random(COLUMNS, seed=seed + 2).abs() + 0.1 if smooth else None
    parts["order"] = random(COLUMNS, seed=seed + 3).argsort() if order else None
    parts["activation_scale"] = torch.tensor(0.02) if activations == "static" else None
    held = quantize_tensor(weight, fmt)
    if outliers:
        held, parts["outliers"], parts["outlier_weight"] = split(weight, torch.tensor([3, 40]), fmt)
    return QuantLinear(held, activations=activations, **parts)


def inputs(*shape: int, seed: int = 9) -> Tensor:
    """(*shape, 64), with the two columns that LLM.int8() sets apart far out."""
    x = random(*shape, COLUMNS, seed=seed)
    x[..., [3, 40]] *= 30
    return x


def close(found: Tensor, wanted: Tensor, limit: float) -> None:
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    assert (found.float() - wanted.float()).abs().max() <= limit * wanted.float().abs().max()


@given(
    st.sampled_from([("int8", fast_paths.int8), ("fp8_e4m3", fast_paths.fp8)]),
    st.sampled_from(["token", "tensor", "static"]),
    st.sampled_from(["channel", "tensor"]),
    st.sampled_from([(1,), (17,), (2, 3), (1, 1, 33)]),
    st.tuples(*[st.booleans()] * 4),
    st.integers(0, 99),
)
def test_both_sides_in_8_bits_are_the_definition(
    path: tuple[str, Any], activations: str, granularity: str, shape: tuple[int, ...],
    parts: tuple[bool, ...], seed: int,
) -> None:  # fmt: skip
    given_parts = dict(zip(("bias", "smooth", "order", "outliers"), parts, strict=True))
    layer = made(path[0], activations, granularity=granularity, seed=seed, **given_parts)
    x = inputs(*shape, seed=seed)
    close(path[1](layer, x), layer.reference(x), 1e-5)
    # the definition itself rounds both sides to the dtype of x before it multiplies
    close(path[1](layer, x.bfloat16()), layer.reference(x.bfloat16()), 2e-2)


def test_fp8_on_both_sides_is_coarser_than_weights_alone() -> None:
    weight, x = random(ROWS, COLUMNS), random(40, COLUMNS, seed=5)
    held = quantize_tensor(weight, Format("fp8_e4m3"))
    alone, both = QuantLinear(held), QuantLinear(held, activations="token")
    codes, scale = scaled.to_codes(x, scaled.E4M3)
    torch.testing.assert_close(alone(x), x @ held.dequantize().T)
    torch.testing.assert_close(both(x), (codes.float() * scale) @ held.dequantize().T)
    exact = x @ weight.T
    errors = [float((layer(x) - exact).norm() / exact.norm()) for layer in (alone, both)]
    assert 0.01 < errors[0] < errors[1] < 0.06  # a mantissa of three bits, once and twice


def test_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.version, "hip", None)
    half = torch.bfloat16
    for activations in ("token", "tensor", "static"):
        assert fast_paths.takes_int8(made("int8", activations, outliers=True, smooth=True), CUDA)
        assert fast_paths.takes_fp8(made("fp8_e4m3", activations), CUDA, half)
    # weights alone leave x as it is: no product of 8 bits by 8
    assert not fast_paths.takes_int8(made("int8", None), CUDA)
    assert not fast_paths.takes_fp8(made("fp8_e4m3", None), CUDA, half)
    assert not fast_paths.takes_fp8(made("fp8_e4m3"), CUDA, torch.float32)
    for other in ("int4", "fp8_e4m3", "fp8_e5m2"):
        assert not fast_paths.takes_int8(made(other), CUDA)
    assert not fast_paths.takes_fp8(made("fp8_e5m2"), CUDA, half)
    uneven = random(ROWS, COLUMNS) + 1
    for fmt in (Format("int8", "group", 32), Format(symmetric=False)):
        layer = QuantLinear(quantize_tensor(uneven, fmt), activations="token")
        assert not fast_paths.takes_int8(layer, CUDA)
    seven_rows = QuantLinear(quantize_tensor(random(7, COLUMNS), Format()), activations="token")
    assert not fast_paths.takes_int8(seven_rows, CUDA)


def test_what_is_multiplied_has_a_name() -> None:
    assert made("int4", None, granularity="channel").kind == "int4"
    assert made("int8", "static").kind == "int8 x int8"
    assert made("fp8_e4m3", "token").kind == "fp8_e4m3 x fp8_e4m3"


# Codes that lie as a GPU's int8 product reads them


def test_signed_codes_are_the_stored_ones() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(signed(codes).int(), codes.int() - 128)
    assert torch.equal(stored(signed(codes)), codes)
    assert signed(signed(codes)).dtype == torch.int8
    assert stored(codes) is codes


def test_a_layer_with_signed_codes_is_the_same_layer() -> None:
    layer = made(bias=True, smooth=True, outliers=True)
    turned = copy.deepcopy(layer)
    turned.codes = signed(turned.codes)
    x = inputs(3)
    assert torch.equal(turned.reference(x), layer.reference(x))
    assert torch.equal(turned.dense(), layer.dense())
    assert turned.nbytes == layer.nbytes
    wanted = layer.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in turned.state_dict().items())
    other = made(bias=True, smooth=True, outliers=True, seed=7)
    other.codes = signed(other.codes)
    other.load_state_dict(turned.state_dict())
    assert torch.equal(other.reference(x), layer.reference(x))
    turned.to(torch.bfloat16)  # on this device codes lie as they are stored
    assert torch.equal(turned.codes, layer.codes)


# Whole models


TEXTS = [[1, *range(5, 200)], [1, *range(300, 495)]]
RECIPES = (
    "w8a8", "w8a8:activations=tensor", "smoothquant", "smoothquant:activations=static",
    "llm_int8:threshold=3", "fp8_e4m3:activations=token", "fp8_e4m3:granularity=tensor,activations=tensor",
)  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_models_multiply_8_bits_by_8(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = labcore.load("story", dtype="float32")
    exact = labcore.logits(model, TEXTS)
    labcore.quantize(model, recipe, calibration=TEXTS, progress=False)
    ran = []

    def compared(layer: QuantLinear, x: Tensor) -> Tensor:
        """On the inputs that the model really has."""
        both = fast_paths.takes_int8(layer, x.device), fast_paths.takes_fp8(layer, x.device, x.dtype)
        assert both == (("fp8" not in recipe), "fp8" in recipe)
        found = (fast_paths.int8 if both[0] else fast_paths.fp8)(layer, x)
        close(found, layer.reference(x), 1e-5)
        ran.append(layer)
        return found

    def available(layer: QuantLinear, x: Tensor) -> dict[str, Any]:
        return {"both": partial(compared, layer)} if layer.activations else {}  # none: the head

    model.transformer.fast = False
    wanted = labcore.logits(model, TEXTS)
    model.transformer.fast = True
    monkeypatch.setattr(fast_paths, "available", available)
    monkeypatch.setattr(choice, "_tables", {})
    choice._best.cache_clear()
    found = labcore.logits(model, TEXTS)
    choice._best.cache_clear()
    assert len({id(layer) for layer in ran}) == 4 * 6
    # A last digit may turn the code of a later input, and that turns others: another rounding, as good.
    assert (found - wanted).norm() < (wanted - exact).norm()


# Triton


def check_triton(device: str, dtype: torch.dtype, limit: float) -> None:
    """Raises AssertionError where the layer's path and its definition differ by more than `limit`."""
    layers = [
        made("int8", None, bias=True, smooth=True, order=True),
        made("int8", "token", outliers=True, bias=True),
        made("int8", "static", granularity="tensor"),
        made("int4", None, outliers=True),
        QuantLinear(quantize_tensor(random(ROWS, COLUMNS) + 1, Format("int4", "group", 32, symmetric=False))),
    ]
    turned = made("int8", "tensor")
    turned.codes = signed(turned.codes)
    for layer in [*layers, turned]:
        layer = layer if device == "cpu" else layer.to(device)
        assert fast_paths.takes_triton(layer)
        for shape in ((1,), (2, 5), (33,)):
            x = inputs(*shape).to(device, dtype)
            close(fast_paths.triton(layer, x), layer.reference(x), limit)
        grids = layer._kept["grids"]
        fast_paths.triton(layer, x)
        assert layer._kept["grids"] is grids  # laid out once
        assert not copy.deepcopy(layer)._kept
        layer.to(torch.float16)
        assert not layer._kept


@needs_triton
@without_gpu
def test_triton_in_the_interpreter() -> None:
    code = (
        "import torch; from tests.quant import test_fast_paths as t\n"
        "t.check_triton('cpu', torch.float32, 1e-5); t.check_triton('cpu', torch.float16, 5e-3); print('ok')"
    )
    assert interpreted(code) == "ok"


# On a GPU itself


@pytest.mark.gpu
@needs_triton
def test_triton_on_a_gpu() -> None:
    check_triton("cuda", torch.float32, 3e-3)  # tiles go through TF32
    check_triton("cuda", torch.bfloat16, 3e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_layers_offer_their_paths_on_a_gpu(dtype: torch.dtype) -> None:
    for kind, name in (("int8", "int8"), ("fp8_e4m3", "fp8")):
        for activations in ("token", "tensor", "static"):
            layer = made(kind, activations, bias=True, smooth=True, order=True, outliers=True).to(CUDA)
            for shape in ((1,), (2, 3), (17,), (300,)):
                x = inputs(*shape).to(CUDA, dtype)
                takes = scaled.takes_int8(CUDA, ROWS, COLUMNS)
                if kind != "int8":
                    takes = scaled.takes_fp8(CUDA, ROWS, COLUMNS, dtype)
                found = layer.paths(x)
                assert (name in found) == takes
                for path in found.values():
                    close(path(x), layer.reference(x), 2e-2 if dtype == torch.bfloat16 else 5e-3)


@pytest.mark.gpu
def test_codes_turn_on_the_way_to_a_gpu_and_back() -> None:
    layer = made(outliers=True)
    codes = layer.codes.clone()
    there = copy.deepcopy(layer).to(CUDA)
    takes = scaled.takes_int8(CUDA, ROWS, COLUMNS)
    assert there.codes.dtype == (torch.int8 if takes else torch.uint8)
    assert torch.equal(there.state_dict()["codes"].cpu(), codes)
    assert torch.equal(there.to("cpu").codes, codes)
    assert made("int8", None).to(CUDA).codes.dtype == torch.uint8


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_model_on_a_gpu_is_quantized_saved_and_loaded(tmp_path: Any, recipe: str) -> None:
    model = labcore.load("story", device="cuda", dtype="bfloat16")
    exact = labcore.logits(model, TEXTS)
    labcore.quantize(model, recipe, calibration=TEXTS, progress=False)
    found = labcore.logits(model, TEXTS)
    again = labcore.load(save_quantized(model, tmp_path), device="cuda")
    assert torch.equal(labcore.logits(again, TEXTS), found)
    model.transformer.fast = False
    wanted = labcore.logits(model, TEXTS)
    assert (found - wanted).norm() < 1.5 * (wanted - exact).norm()  # two roundings, neither the better
    assert len(labcore.generate(again, "Tom has", max_new_tokens=5, ignore_eos=True).tokens) == 5
