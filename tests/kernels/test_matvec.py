"""A token's products with what stands around them, in Triton, against the plain operations one by one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from labcore.kernels import reference
from labcore.kernels.around import ADD, GATE, TURN, Around
from tests.kernels.interpreter import interpreted, needs_triton, without_gpu
from tests.kernels.test_heads import angles

# rows, columns, half a head: sizes that fill no tile, and one that takes several
SHAPES = [(48, 40, 8), (24, 1100, 4), (40, 72, 10), (96, 300, 16), (160, 2048, 8)]


def check(device: str, dtype: torch.dtype, limit: float) -> None:
    """Raises AssertionError where a product and its plain twin differ by more than `limit`."""
    from labcore.kernels.triton.matvec import fused_linear

    for rows, columns, half in SHAPES:
        torch.manual_seed(rows)
        made = [torch.randn(*shape) for shape in ((1, 1, columns), (rows, columns), (rows,), (columns,))]
        made[1] /= columns**0.5  # results of order one
        x, weight, bias, norm = (one.to(device, dtype) for one in made)
        residual = torch.randn(1, 1, rows).to(device, dtype)
        for around, expected in wanted(x, weight, bias, norm, residual, half):
            found = fused_linear(x, weight, around)
            torch.testing.assert_close(found, expected.to(x.dtype), atol=limit, rtol=limit)


def wanted(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, norm: torch.Tensor, residual: torch.Tensor,
    half: int,
) -> list[tuple[Around, torch.Tensor]]:  # fmt: skip
    """What may stand around a product, each with its result by plain operations in fp32.

    Nothing; a norm in front and a bias; a residual behind; the gate; heads turned, all but the last one.
    """
    alone = F.linear(x.float(), weight.float())
    plain = F.linear(reference.rms_norm(x.float(), norm.float(), 1e-5), weight.float(), bias.float())
    heads = plain.view(1, 1, -1, 2 * half).transpose(1, 2)
    turned = heads.shape[1] - 1
    cos, sin = (part.to(x) for part in angles(1, 1, 2 * half))
    spun = reference.apply_rope(heads[:, :turned], cos.float(), sin.float())
    spun = torch.cat([spun, heads[:, turned:]], dim=1).transpose(1, 2).reshape(1, 1, -1)
    return [
        (Around(), alone),
        (Around(bias, norm, 1e-5), plain),
        (Around(bias, then=ADD, residual=residual), alone + bias.float() + residual.float()),
        (Around(bias, norm, 1e-5, GATE), reference.swiglu(plain)),
        (Around(bias, norm, 1e-5, TURN, half=half, angles=(cos, sin), turned=turned), spun),
    ]


@pytest.mark.slow
@needs_triton
@without_gpu
def test_in_the_interpreter() -> None:
    code = (
        "import torch; from tests.kernels import test_matvec as t\n"
        "t.check('cpu', torch.float32, 1e-5); t.check('cpu', torch.float16, 8e-3); print('ok')"
    )
    assert interpreted(code) == "ok"


@pytest.mark.gpu
@needs_triton
def test_on_a_gpu() -> None:
    check("cuda", torch.float32, 1e-5)
    check("cuda", torch.bfloat16, 3e-2)
