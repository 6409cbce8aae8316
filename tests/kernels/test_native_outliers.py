"""The native product of codes on vectors with outliers: their neighbours keep their digits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from labcore.kernels import native
from labcore.kernels.native import quantized as native_quantized
from labcore.quant.formats import Format, quantize_tensor
from labcore.quant.linear import QuantLinear

pytestmark = pytest.mark.skipif(not native.available(), reason=native.status())
FORMATS = ["int8", "int4:group=32", "int4:group=64,symmetric=false", "int8:group=192,symmetric=false"]


def vectors(tokens: int, columns: int, factor: float, seed: int) -> tuple[Tensor, Tensor]:
    """(normal numbers, the same with three columns `factor` times as large)."""
    generator = torch.Generator().manual_seed(seed)
    plain = torch.randn(tokens, columns, generator=generator)
    large = plain.clone()
    large[:, torch.randperm(columns, generator=generator)[:3]] *= factor
    return plain, large


@given(
    st.sampled_from(FORMATS),
    st.sampled_from([1, 3, 12, 21]),
    st.sampled_from([192, 576]),
    st.floats(1, 500),
    st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_an_outlier_does_not_erase_its_neighbours(
    fmt: str, tokens: int, columns: int, factor: float, seed: int
) -> None:
    """Weights of the large columns are zero, so that only the others are heard, which must be right."""
    plain, large = vectors(tokens, columns, factor, seed)
    weight = torch.randn(32, columns, generator=torch.Generator().manual_seed(seed))
    weight[:, (large != plain).any(0)] = 0.0
    held = quantize_tensor(weight, Format.parse(fmt))
    matrix = QuantLinear(held).native_matrix()
    assert matrix is not None
    wanted = large @ held.dequantize().T
    assert float((matrix(large) - wanted).norm() / wanted.norm()) < 0.06


def test_what_8_bits_would_have_done() -> None:
    """Rounded to 8 bits, as a recipe that rounds activations asks for, the same vectors are far off."""
    plain, large = vectors(8, 576, 1000, seed=0)
    weight = torch.randn(64, 576, generator=torch.Generator().manual_seed(1))
    weight[:, (large != plain).any(0)] = 0.0
    held = quantize_tensor(weight, Format())
    wanted = large @ held.dequantize().T
    fine, coarse = QuantLinear(held), QuantLinear(held, activations="token")
    errors = []
    for layer in (fine, coarse):
        matrix = layer.native_matrix()
        assert matrix is not None
        errors.append(float((matrix(large) - wanted).norm() / wanted.norm()))
    assert errors[0] < 0.06
    assert errors[1] > 0.5


def test_tokens_do_not_see_each_other() -> None:
    """A token with outliers in the same tile changes nothing for the others, to the last bit."""
    plain, large = vectors(12, 576, 500, seed=3)
    weight = torch.randn(48, 576, generator=torch.Generator().manual_seed(1))
    matrix = QuantLinear(quantize_tensor(weight, Format("int4", "group", 64))).native_matrix()
    assert matrix is not None
    mixed = plain.clone()
    mixed[5] = large[5]
    others = [token for token in range(12) if token != 5]
    assert torch.equal(matrix(mixed)[others], matrix(plain)[others])
    assert torch.allclose(matrix(mixed)[5], matrix(large)[5], rtol=1e-6)


def test_the_threshold_is_the_kernel_s() -> None:
    header = native_quantized.__file__.replace("quantized.py", "rounding.h")
    with open(header, encoding="utf-8") as file:
        assert f"#define CREST {native_quantized.CREST:.1f}f" in file.read()
