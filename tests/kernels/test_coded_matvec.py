"""A token's products with codes and what stands around them, in Triton, against the weights read back."""

from __future__ import annotations

from dataclasses import replace
from itertools import product as product_of

import pytest
import torch
import torch.nn.functional as F

from labcore.kernels.around import Around
from labcore.quant.formats import Format, QuantizedTensor, quantize_tensor
from tests.kernels.interpreter import interpreted, needs_triton, without_gpu
from tests.kernels.test_matvec import wanted

# rows, columns, format: one scale a row and groups, a zero point, rows that fill no tile, several tiles
CASES = [
    (48, 80, Format("int8")),
    (40, 2304, Format("int8", "group", 64)),
    (24, 96, Format("int8", "tensor")),
    (56, 192, Format("int4", "group", 32)),
    (32, 4160, Format("int4", "group", 32, symmetric=False)),
    (96, 128, Format("int8", "group", 32, symmetric=False)),
]
HALF = 4


def check(device: str, dtype: torch.dtype, limit: float) -> None:
    """Raises AssertionError where a product and its plain twin differ by more than `limit`."""
    for (rows, columns, fmt), lowest in product_of(CASES, (False, True)):
        torch.manual_seed(rows)
        held = quantize_tensor(torch.randn(rows, columns) / columns**0.5, fmt).to(torch.device(device))
        held = with_offset(held) if lowest else held
        x, bias, norm, residual = (
            torch.randn(*shape).to(device, dtype)
            for shape in ((1, 1, columns), (rows,), (columns,), (1, 1, rows))
        )
        for codes in (held.codes, *([(held.codes ^ 128).view(torch.int8)] if fmt.bits == 8 else [])):
            for around, expected in wanted(x, held.dequantize(), bias, norm, residual, HALF):
                torch.testing.assert_close(
                    product(held, codes, x, around), expected.to(x.dtype), atol=limit, rtol=limit
                )


def with_offset(held: QuantizedTensor) -> QuantizedTensor:
    """The same codes, as foreign formats have them: with a lowest value instead of a centre."""
    return replace(held, zero=None, offset=torch.randn_like(held.scale) * held.scale)


def product(held: QuantizedTensor, codes: torch.Tensor, x: torch.Tensor, around: Around) -> torch.Tensor:
    """The kernel's."""
    from labcore.kernels.triton.coded_matvec import fused_linear

    scale, zero, offset = (
        None if grid is None else grid.expand(codes.shape[0], -1).contiguous()
        for grid in (held.scale, held.zero, held.offset)
    )
    assert scale is not None
    bits = held.format.bits
    centre = 2 ** (bits - 1) if zero is None and offset is None else 0
    if codes.dtype == torch.int8:
        centre -= 128
    return fused_linear(x, codes, bits, scale, centre=centre, zero=zero, offset=offset, around=around)


@pytest.mark.slow
@needs_triton
@without_gpu
def test_in_the_interpreter() -> None:
    code = (
        "import torch; from tests.kernels import test_coded_matvec as t\n"
        "t.check('cpu', torch.float32, 2e-5); t.check('cpu', torch.float16, 8e-3); print('ok')"
    )
    assert interpreted(code) == "ok"


@needs_triton
@without_gpu
def test_large_and_small_numbers_are_multiplied_as_they_are() -> None:
    code = "from tests.kernels import test_coded_matvec as t\nt.check_sizes('cpu'); print('ok')"
    assert interpreted(code) == "ok"


def check_sizes(device: str) -> None:
    """Raises AssertionError where x of unusual size comes out wrong: codes are multiplied as tiny numbers."""
    held = quantize_tensor(torch.randn(16, 64), Format("int8")).to(torch.device(device))
    for size in (1e-10, 1e-5, 1e5, 1e16):
        x = torch.randn(1, 1, 64, device=device) * size
        expected = F.linear(x, held.dequantize())
        found = product(held, held.codes, x, Around())
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max(), size


@pytest.mark.gpu
@needs_triton
def test_on_a_gpu() -> None:
    check("cuda", torch.float32, 2e-5)
    check("cuda", torch.bfloat16, 3e-2)
    check_sizes("cuda")
