"""Formats: grids, codes, packing, bits, against what papers and arithmetic say."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from labcore.errors import ConfigError
from labcore.kernels.packing import pack, unpack
from labcore.quant.formats import DTYPES, INTEGERS, Format, encode, fake, from_integers, grid, quantize_tensor

formats = st.builds(
    lambda dtype, scope, symmetric: Format(dtype, *scope, symmetric or dtype not in INTEGERS),
    st.sampled_from(DTYPES),
    st.sampled_from([("tensor", 0), ("channel", 0), ("group", 8), ("group", 24)]),
    st.booleans(),
)


def matrix(seed: int, rows: int = 6, columns: int = 48) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@given(st.sampled_from([8, 4, 3, 2, 1]), st.integers(1, 5), st.integers(1, 6), st.integers(0, 9999))
def test_packing_goes_there_and_back(bits: int, rows: int, eights: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(2**bits, (rows, 8 * eights), generator=generator).to(torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (rows, eights * bits)
    assert torch.equal(unpack(packed, bits), codes)


def test_codes_that_fill_no_whole_bytes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"7 codes of 4 bits .* multiple of 2"):
        pack(torch.zeros(2, 7, dtype=torch.uint8), 4)


@given(formats, st.integers(0, 9999))
def test_no_weight_moves_further_than_its_grid_allows(fmt: Format, seed: int) -> None:
    weight = matrix(seed)
    held = quantize_tensor(weight, fmt)
    gap = (held.dequantize() - weight).abs().unflatten(1, (held.scale.shape[1], -1))
    scale = held.scale.float()[..., None]
    if fmt.is_integer:
        assert (gap <= scale * 0.5001 + (0 if fmt.symmetric else scale * 0.5)).all()
    elif fmt.dtype == "nf4":
        assert (gap <= scale * 0.16).all()  # half of the widest gap of its table
    else:
        step = 2.0 ** -(3 if fmt.dtype == "fp8_e4m3" else 2) / 2
        grouped = weight.abs().unflatten(1, (held.scale.shape[1], -1))
        assert (gap <= grouped * step * 1.001 + scale * 0.002).all()


@given(formats, st.integers(0, 9999))
def test_a_second_round_trip_changes_nothing(fmt: Format, seed: int) -> None:
    weight = matrix(seed)
    scale, zero = grid(weight, fmt)
    once = encode(weight, fmt, scale, zero).dequantize()
    torch.testing.assert_close(encode(once, fmt, scale, zero).dequantize(), once)


@given(formats, st.integers(0, 9999))
def test_bytes_are_what_the_formula_says(fmt: Format, seed: int) -> None:
    held = quantize_tensor(matrix(seed), fmt)
    assert held.effective_bits == pytest.approx(fmt.effective_bits((6, 48)))
    assert Format.parse(fmt.label) == fmt


@given(st.sampled_from(sorted(INTEGERS)), st.booleans(), st.integers(0, 9999))
def test_integers_come_back(dtype: str, symmetric: bool, seed: int) -> None:
    fmt = Format(dtype, "group", 16, symmetric)
    low, high = (-(2 ** (fmt.bits - 1)), 2 ** (fmt.bits - 1)) if symmetric else (0, 2**fmt.bits)
    q = torch.randint(low, high, (4, 32), generator=torch.Generator().manual_seed(seed))
    zero = None if symmetric else torch.full((4, 2), 1, dtype=torch.uint8)
    held = from_integers(q, fmt, torch.ones(4, 2), zero)
    assert torch.equal(held.integers().long(), q)
    assert torch.equal(held.dequantize(), q.float() - (0 if symmetric else 1))


def test_one_large_number_leaves_nothing_of_the_small_ones() -> None:
    held = quantize_tensor(torch.tensor([[0.1, -0.2, 0.3, 60.0]]), Format("int8", "tensor"))
    assert held.integers().tolist() == [[0, 0, 1, 127]]


def test_effective_bits_of_the_usual_4_bit_format() -> None:
    assert Format("int4", "group", 128).effective_bits((4096, 4096)) == 4.125


def test_zero_stays_zero_where_there_is_a_zero_point() -> None:
    weight = torch.rand(3, 32) + 1  # all above nothing
    weight[:, 5] = 0
    assert (fake(weight, Format("int4", "group", 16, symmetric=False))[:, 5] == 0).all()


def snr(weight: Tensor, fmt: Format) -> float:
    noise = (fake(weight, fmt) - weight).square().mean()
    return 10 * math.log10(float(weight.square().mean() / noise))


@pytest.mark.parametrize(("bits", "wanted"), [(8, (38.3, 41.2, 43.8)), (4, (13.1, 16.1, 18.6))])
def test_signal_to_noise_of_normal_weights(bits: int, wanted: tuple[float, ...]) -> None:
    weight = torch.randn(4096, 4096, generator=torch.Generator().manual_seed(0))
    scopes = [("tensor", 0), ("channel", 0), ("group", 128)]
    found = [snr(weight, Format(f"int{bits}", *scope)) for scope in scopes]  # type: ignore[arg-type]
    assert found == pytest.approx(wanted, abs=0.3)


def test_uniform_noise_is_a_twelfth_of_a_step_squared_and_a_bit_is_six_decibels() -> None:
    weight = torch.rand(512, 512, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noise = {
        bits: float((fake(weight, Format(f"int{bits}", "tensor")) - weight).square().mean())
        for bits in (4, 8)
    }
    for bits, found in noise.items():
        step = float(weight.abs().max()) / (2 ** (bits - 1) - 1)
        assert found == pytest.approx(step**2 / 12, rel=0.02)
    decibels = 10 * math.log10(noise[4] / noise[8]) / 4
    assert 20 * math.log10(2) == pytest.approx(6.02, abs=0.001)
    # symmetric codes use 127 / 7 times as many steps, a little more than 2^4
    assert decibels == pytest.approx(20 * math.log10(127 / 7) / 4, abs=0.05)


def test_rows_are_looked_up_as_an_embedding_does() -> None:
    for fmt in (Format("int4", "group", 16, False), Format("fp8_e4m3"), Format("int8", "tensor")):
        held = quantize_tensor(matrix(3), fmt)
        picked = held.rows(torch.tensor([[5, 0], [2, 2]]), torch.float32)
        assert torch.equal(picked, held.dequantize()[torch.tensor([[5, 0], [2, 2]])])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int5", "no format 'int5'; choose from int8"),
        ("int4:group=x", "group is 'x'"),
        ("int4:size=3", "no setting 'size'"),
        ("int4:granularity=row", "granularity is 'row'"),
        ("int8:granularity=tensor,group=8", "means nothing"),
        ("nf4:symmetric=false", "nf4 has no zero point"),
    ],
)
def test_formats_that_do_not_exist(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Format.parse(text)


def test_groups_that_do_not_divide() -> None:
    with pytest.raises(ConfigError, match=r"Groups of 100 do not divide the 48 columns .* 16"):
        quantize_tensor(matrix(0), Format("int4", "group", 100))
