"""A token's products with codes and what stands around them, in Triton, against the weights read back."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from labcore.kernels import reference
from labcore.kernels.around import ADD, GATE, TURN, Around
from labcore.quant.formats import Format, QuantizedTensor, quantize_tensor
from tests.kernels.interpreter import interpreted, needs_triton, without_gpu
from tests.kernels.test_heads import angles

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
    for rows, columns, fmt in CASES:
        torch.manual_seed(rows)
        held = quantize_tensor(torch.randn(rows, columns) / columns**0.5, fmt).to(torch.device(device))
        x, bias, norm, residual = (
            torch.randn(*shape).to(device, dtype)
            for shape in ((1, 1, columns), (rows,), (columns,), (1, 1, rows))
        )
        for codes in (held.codes, *([(held.codes ^ 128).view(torch.int8)] if fmt.bits == 8 else [])):
            check_around(held, codes, x, bias, norm, residual, limit)


def check_around(
    held: QuantizedTensor, codes: torch.Tensor, x: torch.Tensor, bias: torch.Tensor, norm: torch.Tensor,
    residual: torch.Tensor, limit: float,
) -> None:  # fmt: skip
    """Alone; with a norm and a bias; with a residual, the gate and the rotation behind."""
    weight, turned = held.dequantize(), codes.shape[0] // (2 * HALF) - 1
    cos, sin = (part.to(x) for part in angles(1, 1, 2 * HALF))
    alone = F.linear(x.float(), weight)
    plain = F.linear(reference.rms_norm(x.float(), norm.float(), 1e-5), weight, bias.float())
    heads = plain.view(1, 1, -1, 2 * HALF).transpose(1, 2)
    spun = reference.apply_rope(heads[:, :turned], cos.float(), sin.float())
    wanted = {
        Around(): alone,
        Around(bias, norm, 1e-5): plain,
        Around(bias, then=ADD, residual=residual): alone + bias.float() + residual.float(),
        Around(bias, norm, 1e-5, GATE): reference.swiglu(plain),
        Around(bias, norm, 1e-5, TURN, half=HALF, angles=(cos, sin), turned=turned): torch.cat(
            [spun, heads[:, turned:]], dim=1
        ).transpose(1, 2).reshape(1, 1, -1),
    }  # fmt: skip
    for around, expected in wanted.items():
        torch.testing.assert_close(
            product(held, codes, x, around), expected.to(x.dtype), atol=limit, rtol=limit
        )


def product(held: QuantizedTensor, codes: torch.Tensor, x: torch.Tensor, around: Around) -> torch.Tensor:
    """The kernel's."""
    from labcore.kernels.triton.coded_matvec import fused_linear

    scale, zero = (
        None if grid is None else grid.expand(codes.shape[0], -1).contiguous()
        for grid in (held.scale, held.zero)
    )
    assert scale is not None
    bits = held.format.bits
    centre = 0 if zero is not None else 2 ** (bits - 1)
    if codes.dtype == torch.int8:
        centre -= 128
    return fused_linear(x, codes, bits, scale, centre=centre, zero=zero, around=around)


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
