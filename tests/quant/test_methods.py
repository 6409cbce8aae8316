"""GPTQ, AWQ, SmoothQuant and LLM.int8() against small independent references and what they promise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from labcore.errors import ConfigError
from labcore.kernels.scaled import to_codes
from labcore.quant.awq import awq, search_clip, search_scale
from labcore.quant.formats import Format, fake, grid, quantize_tensor
from labcore.quant.gptq import Hessian, gptq
from labcore.quant.linear import QuantLinear, rounded
from labcore.quant.outliers import outlier_columns, split
from labcore.quant.smoothquant import search_alpha, smoothing


def layer(seed: int, rows: int = 24, columns: int = 64, tokens: int = 400) -> tuple[Tensor, Tensor]:
    """Random weights, and inputs whose columns hang together and differ in size."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    mixing = torch.randn(columns, columns, generator=generator) * 0.3 + torch.eye(columns)
    inputs = torch.randn(tokens, columns, generator=generator) @ mixing
    return weight, inputs * torch.rand(columns, generator=generator).add(0.1) * 3


def hessian(inputs: Tensor) -> Tensor:
    found = Hessian(inputs.shape[1])
    for part in inputs.split(150):
        found.add(part)
    return found.matrix()


def output_error(weight: Tensor, other: Tensor, inputs: Tensor) -> float:
    return float(((weight - other) @ inputs.T).square().mean())


def obq_in_order(weight: Tensor, h: Tensor, fmt: Format, damping: float) -> Tensor:
    """Optimal Brain Quantization with a fixed order, as its paper's equations: after each column the inverse
    loses that column's row and column by one step of Gaussian elimination."""
    work = weight.double().clone()
    damped = h.double() + damping * h.double().diagonal().mean() * torch.eye(len(h), dtype=torch.float64)
    inverse = torch.linalg.inv(damped)
    width = fmt.width(weight.shape[1])
    out = torch.zeros_like(work)
    scale, zero = grid(weight, fmt)
    for j in range(weight.shape[1]):
        if fmt.granularity == "group" and j % width == 0:
            scale, zero = grid(work[:, j : j + width].float(), Format(fmt.dtype, "channel", 0, fmt.symmetric))
        s = scale.double()[:, 0]
        q = (work[:, j] / s).round()
        if zero is None:
            top = 2 ** (fmt.bits - 1) - 1
            q = q.clamp(-top, top) * s
        else:
            z = zero.double()[:, 0]
            q = ((q + z).clamp(0, 2**fmt.bits - 1) - z) * s
        out[:, j] = q
        error = (work[:, j] - q) / inverse[j, j]
        work -= error[:, None] * inverse[j][None]
        inverse = inverse - inverse[:, j : j + 1] @ inverse[j : j + 1] / inverse[j, j]
    return out.float()


gptq_formats = st.sampled_from(
    [
        Format("int4", "group", 16),
        Format("int4", "group", 16, False),
        Format("int3", "channel"),
        Format("int8", "tensor"),
        Format("int2", "group", 32, False),
    ]
)


@given(gptq_formats, st.integers(0, 50), st.sampled_from([1, 7, 16, 24, 64, 128]))
def test_gptq_is_obq_in_order_whatever_the_block(fmt: Format, seed: int, block: int) -> None:
    weight, inputs = layer(seed, rows=5, columns=64)
    h = hessian(inputs)
    found, order = gptq(weight, h, fmt, block=block, damping=0.01)
    wanted = obq_in_order(weight, h, fmt, 0.01)
    assert order is None
    # two codes in a hundred may fall to the other side of a tie in fp32, and what follows makes up for them
    away = (found.dequantize() - wanted).abs() > 1e-3
    assert away.float().mean() < 0.05
    assert output_error(weight, found.dequantize(), inputs) == pytest.approx(
        output_error(weight, wanted, inputs), rel=0.1
    )


@given(gptq_formats, st.integers(0, 50))
def test_gptq_in_order_of_activations_is_gptq_on_sorted_columns(fmt: Format, seed: int) -> None:
    weight, inputs = layer(seed)
    h = hessian(inputs)
    found, order = gptq(weight, h, fmt, act_order=True)
    assert order is not None
    assert (h.diagonal()[order].diff() <= 0).all()
    plain, _ = gptq(weight[:, order], h[order][:, order], fmt)
    assert torch.equal(found.dequantize(), plain.dequantize())
    x = inputs[:7]
    torch.testing.assert_close(
        QuantLinear(found, order=order).reference(x), x[:, order] @ found.dequantize().T
    )


@pytest.mark.parametrize("bits", [4, 3])
def test_gptq_and_awq_lose_less_than_rounding(bits: int) -> None:
    fmt = Format(f"int{bits}", "group", 16)
    for seed in range(5):
        weight, inputs = layer(seed)
        inputs[:, 3] *= 15
        nearest = output_error(weight, fake(weight, fmt), inputs)
        best, _ = gptq(weight, hessian(inputs), fmt)
        codes, smooth = awq(weight, inputs, fmt)
        assert output_error(weight, best.dequantize(), inputs) < 0.7 * nearest
        assert output_error(weight, codes.dequantize() * smooth, inputs) < 0.7 * nearest


def test_gptq_with_a_column_that_was_always_zero_and_refusals() -> None:
    weight, inputs = layer(0)
    inputs[:, 9] = 0
    found, _ = gptq(weight, hessian(inputs), Format("int4", "group", 16))
    assert found.dequantize().isfinite().all()
    with pytest.raises(ConfigError, match="no calibration input"):
        Hessian(8).matrix()
    with pytest.raises(ConfigError, match=r"\[8, 8\] for a weight of 64"):
        gptq(weight, torch.eye(8), Format("int4"))
    with pytest.raises(ConfigError, match="nf4 is none"):
        gptq(weight, hessian(inputs), Format("nf4"))
    with pytest.raises(ConfigError, match="cannot be inverted"):
        gptq(weight, torch.full((64, 64), float("nan")), Format("int4"))


def test_awq_scale_against_brute_force() -> None:
    weight, inputs = layer(1, tokens=300)
    inputs[:, 5] *= 12
    fmt = Format("int3", "group", 16)
    best, curve = search_scale(weight, inputs, fmt, steps=10)
    found = []
    for step in range(10):
        s = inputs.abs().mean(0).clamp_min(1e-4).pow(step / 10)
        s = s / (s.max() * s.min()).sqrt()
        wrong = (fake(weight * s, fmt) / s - weight) @ inputs.T
        found.append(float(wrong.square().mean()))
        if found[-1] == min(found):
            wanted = s
    torch.testing.assert_close(
        torch.tensor([error for _, error in curve]), torch.tensor(found), rtol=1e-3, atol=0
    )
    torch.testing.assert_close(best, wanted)
    assert curve[0][1] == pytest.approx(output_error(weight, fake(weight, fmt), inputs), rel=1e-3)
    assert min(found) < 0.8 * found[0]


def test_awq_clipping_helps_each_group_alone() -> None:
    weight, inputs = layer(2)
    fmt = Format("int3", "group", 16)
    limits = search_clip(weight, inputs, fmt)
    grouped = weight.unflatten(1, (4, 16))
    cut = grouped.clamp(-limits[..., None], limits[..., None]).flatten(1)
    for g in range(4):
        part = slice(16 * g, 16 * g + 16)
        before = ((fake(weight, fmt) - weight)[:, part] @ inputs[:, part].T).square().mean(1)
        after = ((fake(cut, fmt) - weight)[:, part] @ inputs[:, part].T).square().mean(1)
        assert (after <= before * 1.0001).all()
    assert (limits < grouped.abs().amax(-1)).any()
    with pytest.raises(ConfigError, match=r"inputs of 64 columns and got \[0, 64\]"):
        search_clip(weight, inputs[:0], fmt)


@given(st.integers(0, 99), st.floats(0, 1))
def test_smoothing_changes_no_product(seed: int, alpha: float) -> None:
    weight, inputs = layer(seed)
    s = smoothing(inputs.abs().amax(0), weight, alpha)
    torch.testing.assert_close((inputs / s) @ (weight * s).T, inputs @ weight.T, rtol=1e-3, atol=1e-3)


def test_smoothquant_has_its_best_between_the_ends() -> None:
    weight, inputs = layer(4)
    inputs[:, :3] *= 60
    for activations in ("token", "tensor", "static"):
        best, curve = search_alpha(weight, inputs, Format(), activations)  # type: ignore[arg-type]
        errors = dict(curve)
        assert 0 < best < 1
        assert errors[best] < 0.5 * min(errors[0.0], errors[1.0])
    with pytest.raises(ConfigError, match="alpha is 2"):
        smoothing(inputs.abs().amax(0), weight, 2)


def test_activations_of_each_token_alone() -> None:
    x = torch.randn(5, 32) * torch.tensor([1, 10, 100, 0.1, 0])[:, None]
    codes, scale = to_codes(x, torch.int8)
    assert codes.dtype == torch.int8
    torch.testing.assert_close(codes * scale, rounded(x, "token"))
    assert ((codes * scale - x).abs() <= scale * 0.5001).all()


def test_outliers_break_naive_rounding_and_llm_int8_saves_it() -> None:
    weight, inputs = layer(6)
    inputs = inputs / inputs.abs().amax() * 3
    inputs[:, [7, 20]] *= 100
    exact = inputs @ weight.T
    naive = QuantLinear(quantize_tensor(weight, Format()), activations="token").reference(inputs)
    columns = outlier_columns(inputs.abs().amax(0))
    assert columns.tolist() == [7, 20]
    codes, kept, apart = split(weight, columns, Format())
    saved = QuantLinear(codes, activations="token", outliers=kept, outlier_weight=apart)
    plain = inputs.clone()
    plain[:, columns] = 0
    # of what the ordinary columns say, naive rounding leaves little
    told = (plain @ weight.T).square().mean()
    assert (naive - exact).square().mean() > 0.05 * told
    assert (saved.reference(inputs) - exact).square().mean() < 0.001 * told
    torch.testing.assert_close(saved.dense()[:, columns], weight[:, columns])
    with pytest.raises(ConfigError, match="threshold is 0"):
        outlier_columns(inputs.abs().amax(0), 0)
