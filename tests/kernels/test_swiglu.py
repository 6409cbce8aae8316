"""The fused SwiGLU kernels, native and Triton, against the reference."""

from __future__ import annotations

import pytest
import torch

from labcore import kernels
from labcore.kernels import native, reference
from labcore.kernels.native import elementwise
from tests.kernels.interpreter import interpreted, needs_triton, without_gpu

needs_native = pytest.mark.skipif(not native.available(), reason="no C compiler here")
SHAPES = [(1, 2), (3, 5, 34), (2, 2050), (7, 6000)]


@needs_native
@pytest.mark.parametrize("shape", SHAPES)
def test_native(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape) * 5
    torch.testing.assert_close(elementwise.swiglu(x), reference.swiglu(x), atol=1e-5, rtol=1e-5)


@needs_native
def test_native_at_the_edges_of_exp() -> None:
    gate = torch.tensor([[90.0, -90.0, 200.0, -200.0, 1e-30, -0.0, 0.0, 88.7]])
    x = torch.cat([gate, torch.ones_like(gate)], dim=1)
    torch.testing.assert_close(elementwise.swiglu(x), reference.swiglu(x), atol=1e-6, rtol=1e-5)


@needs_native
def test_large_inputs_take_the_native_kernel_and_others_do_not() -> None:
    large = torch.randn(64, 512)
    assert elementwise.takes(large)
    torch.testing.assert_close(kernels.swiglu(large), reference.swiglu(large), atol=1e-5, rtol=1e-5)
    for other in (large[:2], large.half(), large.t(), large.clone().requires_grad_()):
        assert not elementwise.takes(other)


def check_triton(device: str, dtype: torch.dtype, limit: float) -> None:
    """Raises AssertionError where the kernel and the reference differ by more than `limit`."""
    from labcore.kernels.triton.swiglu import swiglu

    for shape in SHAPES:
        x = torch.randn(shape).to(device, dtype)
        expected = reference.swiglu(x.float()).to(dtype)
        torch.testing.assert_close(swiglu(x), expected, atol=limit, rtol=limit)


@needs_triton
@without_gpu
def test_triton_in_the_interpreter() -> None:
    code = (
        "import torch; from tests.kernels import test_swiglu as t\n"
        "t.check_triton('cpu', torch.float32, 1e-5); t.check_triton('cpu', torch.float16, 2e-3); print('ok')"
    )
    assert interpreted(code) == "ok"


@pytest.mark.gpu
@needs_triton
def test_triton_on_a_gpu() -> None:
    check_triton("cuda", torch.float32, 1e-5)
    check_triton("cuda", torch.bfloat16, 2e-2)
