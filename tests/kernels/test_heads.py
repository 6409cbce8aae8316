"""Norm and rotation of each head: torch against the definition, Triton against both."""

from __future__ import annotations

import pytest
import torch

from labcore import kernels
from labcore.kernels import reference
from tests.kernels.interpreter import interpreted, needs_triton, without_gpu

# batch, query heads, KV heads, positions, head size: decode, a packed step, an odd size
SHAPES = [(3, 4, 2, 1, 16), (1, 6, 2, 5, 32), (2, 3, 3, 4, 20)]
Shape = tuple[int, int, int, int, int]


def made(shape: Shape, device: str = "cpu", dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """(B, h + h_kv, n, d) as a slice of the fused projection's output."""
    batch, heads, kv_heads, n, size = shape
    fused = torch.randn(batch, n, heads + 2 * kv_heads, size).to(device, dtype).transpose(1, 2)
    return fused[:, : heads + kv_heads]


def angles(batch: int, n: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin (batch, 1, n, size) as `Rope` makes them."""
    half = torch.rand(batch, 1, n, size // 2) * 6
    return torch.cat([half, half], -1).cos(), torch.cat([-half, half], -1).sin()


@pytest.mark.parametrize("shape", SHAPES)
def test_each_head_is_normed_by_its_own_weight(shape: Shape) -> None:
    x, size, heads = made(shape), shape[-1], shape[1]
    q_weight, k_weight = torch.rand(size), torch.rand(size)
    found = kernels.norm_heads(x, q_weight, k_weight, heads, 1e-6)
    torch.testing.assert_close(found[:, :heads], reference.rms_norm(x[:, :heads], q_weight, 1e-6))
    torch.testing.assert_close(found[:, heads:], reference.rms_norm(x[:, heads:], k_weight, 1e-6))
    torch.testing.assert_close(found, reference.norm_heads(x, q_weight, k_weight, heads, 1e-6))


def check_triton(device: str, dtype: torch.dtype, limit: float) -> None:
    """Raises AssertionError where a kernel and its reference differ by more than `limit`."""
    from labcore.kernels.triton import heads as module

    positions = torch.tensor([[0, 1, 77], [3000, 131071, 5]], device=device)
    frequencies = torch.tensor([-1.0, -0.3, 1.0, 0.3], device=device)
    at = positions[:, None, :, None].float() * frequencies
    found = module.rope_angles(positions, frequencies, dtype)
    torch.testing.assert_close(found, (at.cos().to(dtype), at.sin().to(dtype)), atol=limit, rtol=limit)
    for shape in SHAPES:
        batch, q_heads, _, n, size = shape
        x = made(shape, device, dtype)
        for rows in {1, batch}:
            cos, sin = (part.to(device, dtype) for part in angles(rows, n, size))
            expected = reference.apply_rope(x.float(), cos.float(), sin.float()).to(dtype)
            turned = module.apply_rope(x, cos, sin)
            torch.testing.assert_close(turned, expected, atol=limit, rtol=limit)
        q_weight, k_weight = torch.rand(2, size).to(device, dtype)
        normed = reference.norm_heads(x.float(), q_weight.float(), k_weight.float(), q_heads, 1e-6)
        found = module.norm_heads(x, q_weight, k_weight, q_heads, 1e-6)
        torch.testing.assert_close(found, normed.to(dtype), atol=limit, rtol=limit)


@needs_triton
@without_gpu
def test_triton_in_the_interpreter() -> None:
    code = (
        "import torch; from tests.kernels import test_heads as t\n"
        "t.check_triton('cpu', torch.float32, 1e-5); t.check_triton('cpu', torch.float16, 5e-3); print('ok')"
    )
    assert interpreted(code) == "ok"


@pytest.mark.gpu
@needs_triton
def test_triton_on_a_gpu() -> None:
    check_triton("cuda", torch.float32, 1e-5)
    check_triton("cuda", torch.bfloat16, 2e-2)


@pytest.mark.gpu
@needs_triton
def test_gradients_still_flow_on_a_gpu() -> None:
    x = made(SHAPES[0], "cuda").requires_grad_()
    cos, sin = (part.cuda() for part in angles(1, 1, 16))
    kernels.apply_rope(kernels.norm_heads(x, torch.ones(16).cuda(), torch.ones(16).cuda(), 4, 1e-6), cos, sin)
    kernels.apply_rope(x, cos, sin).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
