"""8 bits times 8 bits through PyTorch's own products, against numbers read back and multiplied."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from labcore.kernels import scaled
from labcore.kernels.packing import to_fp8
from labcore.kernels.scaled import E4M3, int8_linear, reference_linear, round_trip, to_codes

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LINEARS = {torch.int8: scaled.int8_linear, E4M3: scaled.fp8_linear}
# Rounding of a result, as a part of the largest.
ERROR = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 8e-3}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def check(kind: torch.dtype, shape: tuple[int, int, int], each_token: bool, a_row: bool, dtype: torch.dtype,
          device: torch.device = CPU, seed: int = 0) -> None:  # fmt: skip
    """Raises AssertionError where a product differs from its reference by more than the result's rounding."""
    tokens, rows, columns = shape
    x, x_scale = to_codes(random(tokens, columns, seed=seed).to(device), kind, each_token=each_token)
    w, w_scale = to_codes(random(rows, columns, seed=seed + 1).to(device), kind, each_token=a_row)
    parts = (x, x_scale.reshape(-1, 1), w, w_scale.reshape(-1, 1).half(), dtype)
    found, wanted = LINEARS[kind](*parts), reference_linear(*parts[:-1], torch.float32)
    assert found.dtype == dtype
    assert found.shape == (tokens, rows)
    assert (found.float() - wanted).abs().max() <= ERROR[dtype] * wanted.abs().max()


@given(
    st.sampled_from([torch.int8, E4M3]),
    st.tuples(st.sampled_from([1, 2, 16, 17, 31, 33, 70]), st.integers(1, 40), st.integers(1, 70)),
    st.booleans(),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.integers(0, 99),
)
def test_products_are_their_reference(
    kind: torch.dtype,
    shape: tuple[int, int, int],
    each_token: bool,
    a_row: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    check(kind, shape, each_token, a_row, dtype, seed=seed)


def test_sums_of_int8_are_exact() -> None:
    x = torch.full((3, 8192), 127, dtype=torch.int8)
    x[:, 4096:] = -127
    w = x[:1].clone()
    w[:, -1], w[:, 4096:-1] = 126, 127  # sums pass 2**24, where fp32 stops counting by ones
    found = int8_linear(x, torch.ones(1, 1), w, torch.ones(1, 1), torch.float32)
    assert found.tolist() == [[127.0]] * 3


def test_no_tokens_give_no_rows() -> None:
    codes, scale = to_codes(torch.empty(0, 32), torch.int8)
    assert int8_linear(codes, scale, *to_codes(random(8, 32), torch.int8), torch.float32).shape == (0, 8)


def test_codes_reach_the_largest_and_no_further() -> None:
    x = random(5, 32) * torch.tensor([1, 10, 1e4, 0.1, 0])[:, None]
    for kind, top in scaled.TOP.items():
        codes, scale = to_codes(x, kind)
        assert codes.dtype == kind
        assert codes[:4].float().abs().amax(-1).tolist() == [top] * 4
        assert torch.equal(codes.float() * scale, round_trip(x, kind))
        whole, one = to_codes(x, kind, each_token=False)
        assert one.dim() == 0
        assert whole.float().abs().max() == top
        cut, kept = to_codes(x, kind, scale=torch.tensor(1.0))
        assert kept == 1
        assert cut.float().abs().max() == top
        assert torch.equal(round_trip(x, kind, scale=kept)[2].abs() <= top, torch.ones(32, dtype=torch.bool))


def test_rounding_is_to_the_nearest_code() -> None:
    x = random(7, 64)
    codes, scale = to_codes(x, torch.int8)
    assert ((codes * scale - x).abs() <= scale * 0.5001).all()
    codes, scale = to_codes(x, E4M3)
    theirs, their_scale = to_fp8(x, -1)
    assert torch.equal(codes.float(), theirs.float())
    assert torch.equal(scale, their_scale)
    # three bits of mantissa: half a step is a sixteenth of the number, and 2**-10 where they end
    assert ((codes.float() * scale - x).abs() <= (x.abs() / 16).clamp_min(scale * 2**-10) * 1.0001).all()


def test_what_is_not_a_number_stays_so() -> None:
    x = torch.tensor([[1.0, float("nan"), 2.0]])
    for kind in scaled.TOP:
        assert round_trip(x, kind).isnan().any()
        assert round_trip(x, kind, scale=torch.tensor(1.0))[0, 1].isnan()


@pytest.mark.parametrize(
    ("capability", "int8", "fp8"),
    [((7, 0), False, False), ((7, 5), True, False), ((8, 9), True, True), ((9, 0), True, True)],
)
def test_gates(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], int8: bool, fp8: bool) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    assert scaled.takes_int8(CUDA, 64, 40) == int8
    assert not scaled.takes_int8(CUDA, 64, 36)
    assert not scaled.takes_int8(CUDA, 12, 40)
    for dtype in (torch.bfloat16, torch.float16):
        assert scaled.takes_fp8(CUDA, 64, 48, dtype) == fp8
        assert not scaled.takes_fp8(CUDA, 64, 40, dtype)
        assert not scaled.takes_fp8(CUDA, 40, 48, dtype)
    assert not scaled.takes_fp8(CUDA, 64, 48, torch.float32)
    assert scaled._scales_by_row(CUDA, torch.bfloat16) == (capability == (9, 0))
    assert not scaled._scales_by_row(CUDA, torch.float16)
    monkeypatch.setattr(torch.version, "hip", "6.4")  # AMD's GPUs call themselves cuda
    assert not scaled.takes_int8(CUDA, 64, 40)
    assert not scaled.takes_fp8(CUDA, 64, 48, torch.bfloat16)


def test_scales_by_row_are_the_same_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaled, "_scales_by_row", lambda device, dtype: True)
    for each_token, a_row in ((True, True), (True, False), (False, True), (False, False)):
        for tokens in (1, 5, 40):
            check(E4M3, (tokens, 32, 64), each_token, a_row, torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("tokens", [1, 3, 16, 17, 31, 33, 300])
def test_on_a_gpu(tokens: int) -> None:
    for each_token, a_row in ((True, True), (True, False), (False, True), (False, False)):
        for dtype in ERROR:
            for rows, columns in ((32, 64), (576, 1536), (8, 40)):
                if scaled.takes_int8(CUDA, rows, columns):
                    check(torch.int8, (tokens, rows, columns), each_token, a_row, dtype, CUDA)
                if scaled.takes_fp8(CUDA, rows, columns, dtype):
                    check(E4M3, (tokens, rows, columns), each_token, a_row, dtype, CUDA)
