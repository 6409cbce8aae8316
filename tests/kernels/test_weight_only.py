"""Triton's products with 8- and 4-bit weights against the definition."""

from __future__ import annotations

import pytest
import torch

from labcore.quant.formats import Format, quantize_tensor
from tests.kernels.interpreter import interpreted, needs_triton, without_gpu

CASES = [
    (40, 96, Format("int8")),
    (33, 576, Format("int8", "group", 64)),
    (70, 192, Format("int4", "group", 32)),
    (16, 128, Format("int4", "group", 64, symmetric=False)),
    (8, 64, Format("int8", "tensor")),
    (24, 512, Format("int4", "group", 32)),
    (20, 512, Format("int8", "group", 128, symmetric=False)),
    (24, 1152, Format("int8")),  # three tiles of the columns, whose warps share them out
]


def check(device: str, dtype: torch.dtype, limit: float) -> None:
    """Raises AssertionError where kernel and definition differ by more than `limit` of the largest output."""
    from labcore.kernels.triton.weight_only import linear, takes

    for rows, columns, fmt in CASES:
        held = quantize_tensor(torch.randn(rows, columns), fmt).to(torch.device(device))
        assert takes(fmt.bits, columns, columns // held.scale.shape[1])
        scale = held.scale.expand(rows, -1).contiguous()
        for tokens in (1, 3, 8, 9, 33):
            x = torch.randn(tokens, columns, device=device).to(dtype)
            centre = 0 if held.zero is not None else 2 ** (fmt.bits - 1)
            found = linear(x, held.codes, fmt.bits, scale, centre=centre, zero=held.zero)
            wanted = x.float() @ held.dequantize().T
            assert (found.float() - wanted).abs().max() <= limit * wanted.abs().max(), (fmt, tokens)


@needs_triton
@without_gpu
def test_in_the_interpreter() -> None:
    code = (
        "import torch; from tests.kernels import test_weight_only as t\n"
        "t.check('cpu', torch.float32, 1e-5); t.check('cpu', torch.float16, 5e-3); print('ok')"
    )
    assert interpreted(code) == "ok"


@needs_triton
def test_tiles_lie_within_a_group_or_are_whole_groups_of_one_half_of_a_byte() -> None:
    from labcore.kernels.triton.weight_only import takes, tile_columns

    assert tile_columns(576, 576, 8) == 64
    assert tile_columns(576, 32, 4) == 32  # 288 share a half
    assert tile_columns(4096, 32, 4) == 512
    assert tile_columns(4096, 96, 8) == 32
    assert tile_columns(4096, 4096, 8) == 512
    assert tile_columns(14336, 128, 4) == 512
    assert not takes(4, 48, 48)
    assert not takes(3, 64, 64)


@needs_triton
def test_a_tile_is_the_quickest_that_a_processor_has_room_for() -> None:
    from labcore.kernels.triton.weight_only import SAFE, tile_of

    for rows in (64, 3072, 16384):
        for tokens in (2, 16, 17, 65, 512):
            rooms = [tile_of(rows, tokens, 4, 4, room) for room in (227 << 10, 99 << 10, 48 << 10, 0)]
            assert rooms[-1] == SAFE
            assert all(tile.shared(4, 4) <= 48 << 10 for tile in rooms[2:])
            sizes = [tile.tokens * tile.rows * tile.columns for tile in rooms]
            assert sizes == sorted(sizes, reverse=True)
    assert tile_of(2048, 8, 2, 8, 227 << 10).shared(2, 8) == 64 << 10  # as Triton reports it


@pytest.mark.gpu
@needs_triton
def test_on_a_gpu() -> None:
    check("cuda", torch.float32, 2e-3)  # tiles go through TF32
    check("cuda", torch.bfloat16, 3e-2)


@pytest.mark.gpu
@needs_triton
def test_a_quantized_layer_takes_it_on_a_gpu() -> None:
    from labcore.quant.linear import QuantLinear

    layer = QuantLinear(quantize_tensor(torch.randn(64, 128), Format("int4", "group", 32))).to("cuda")
    x = torch.randn(2, 128, device="cuda", dtype=torch.bfloat16)
    assert "triton" in layer.paths(x)
    torch.testing.assert_close(layer.paths(x)["triton"](x), layer.reference(x), atol=0.5, rtol=3e-2)
