"""Products of 8-bit numbers with 8-bit numbers: both sides are codes, and scales are applied to the sums.

int8 by torch._int_mm, whose sums are exact in int32; fp8 by torch._scaled_mm, which sums in fp32. Both reach
the tensor cores' 8-bit rate on a GPU and run on a CPU too. Symmetric throughout: a number is scale * code, so
one product of the codes is enough (Xiao et al. 2023, SmoothQuant, section 3; Micikevicius et al. 2022, FP8
formats for deep learning).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

E4M3 = torch.float8_e4m3fn
NAMES = {torch.int8: "int8", E4M3: "fp8_e4m3"}
TOP = {torch.int8: 127.0, E4M3: 448.0}  # the largest magnitude of a code
FEWEST = 32  # tokens of an int8 product on a GPU; fewer are padded


def to_codes(
    x: Tensor, dtype: torch.dtype, *, each_token: bool = True, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(codes, scale fp32) of x (..., columns): symmetric, in int8 or fp8 e4m3.

    The scale is given, or puts the largest magnitude of each token (..., 1), or else of all of x (), on the
    largest code. What a given scale leaves beyond is cut.
    """
    values, scale = _stretched(x, dtype, each_token, scale)
    return values.to(dtype), scale


def round_trip(
    x: Tensor, dtype: torch.dtype, *, each_token: bool = True, scale: Tensor | None = None
) -> Tensor:
    """x as its codes stand for it, in its own dtype. Arguments as in `to_codes`."""
    values, scale = _stretched(x, dtype, each_token, scale)
    if dtype != torch.int8:
        values = values.to(dtype).float()
    return (values * scale).to(x.dtype)


def _stretched(
    x: Tensor, dtype: torch.dtype, each_token: bool, scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(x / scale in fp32 within the codes' range, on integers for int8; scale)."""
    wide, top = x.float(), TOP[dtype]
    if scale is None:
        largest = wide.abs().amax(-1, keepdim=True) if each_token else wide.abs().amax()
        scale = (largest / top).clamp_min(1e-12)
    values = wide / scale
    return (values.round() if dtype == torch.int8 else values).clamp(-top, top), scale


def takes_int8(device: torch.device, rows: int, columns: int) -> bool:
    """Whether a (rows, columns) matrix can be multiplied by `int8_linear` on this device."""
    if device.type == "cpu":
        return True  # of any shape: oneDNN, or plain loops
    # cuBLASLt reads int8 in steps of 8 numbers, and torch checks it; before Turing (7.5) there are no
    # integer tensor cores; on AMD's libraries nothing here was tried.
    return _nvidia(device) >= (7, 5) and rows % 8 == 0 and columns % 8 == 0


def int8_linear(
    x_codes: Tensor, x_scale: Tensor, w_codes: Tensor, w_scale: Tensor, dtype: torch.dtype
) -> Tensor:
    """(tokens, rows) in `dtype`: (x_scale x) (w_scale w) of int8 codes, summed in int32, scaled in fp32.

    x_codes: (tokens, columns). x_scale: (tokens or 1, 1). w_codes: (rows, columns). w_scale: (rows or 1, 1).
    """
    tokens = x_codes.shape[0]
    # On a GPU torch._int_mm refuses 16 tokens and fewer; rows of zeros change no sum.
    padded = F.pad(x_codes, (0, 0, 0, max(0, FEWEST - tokens)))
    sums = torch._int_mm(padded, w_codes.t())[:tokens]
    return _scaled(sums, x_scale, w_scale, dtype)


def takes_fp8(device: torch.device, rows: int, columns: int, dtype: torch.dtype) -> bool:
    """Whether a (rows, columns) e4m3 matrix and x of this dtype can be multiplied by `fp8_linear`."""
    if device.type == "cpu":
        return True  # of any shape: emulated, in fp32
    # Ada (8.9) and Hopper (9.0) brought fp8; AMD's is another. cuBLASLt reads it in steps of 16 numbers.
    fits = _nvidia(device) >= (8, 9) and rows % 16 == 0 and columns % 16 == 0
    # The tensor cores keep fewer bits of fp8 sums than fp32 has: enough for results in 16 bits only.
    return fits and dtype in (torch.bfloat16, torch.float16)


def fp8_linear(
    x_codes: Tensor, x_scale: Tensor, w_codes: Tensor, w_scale: Tensor, dtype: torch.dtype
) -> Tensor:
    """(tokens, rows) in `dtype`: (x_scale x) (w_scale w) of fp8 e4m3 codes. Shapes as in `int8_linear`."""
    w = w_codes.t()  # column-major, which is the only layout of the second operand on Hopper
    if _scales_by_row(x_codes.device, dtype):
        by_token = x_scale.float().expand(x_codes.shape[0], 1).contiguous()
        by_row = w_scale.float().t().expand(1, w_codes.shape[0]).contiguous()
        return torch._scaled_mm(x_codes, w, scale_a=by_token, scale_b=by_row, out_dtype=dtype)
    one = torch.ones((), dtype=torch.float32, device=x_codes.device)
    sums = torch._scaled_mm(x_codes, w, scale_a=one, scale_b=one, out_dtype=torch.float32)
    return _scaled(sums, x_scale, w_scale, dtype)


def _scales_by_row(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch._scaled_mm takes a scale for each token and row: in bf16, on Hopper and on data-centre
    Blackwell. Elsewhere it sums with one scale of 1, and scales are applied to the sums."""
    return device.type == "cuda" and dtype == torch.bfloat16 and _nvidia(device)[0] in (9, 10)


def reference_linear(
    x_codes: Tensor, x_scale: Tensor, w_codes: Tensor, w_scale: Tensor, dtype: torch.dtype
) -> Tensor:
    """What `int8_linear` and `fp8_linear` compute, by definition: codes read back, multiplied in fp32."""
    return ((x_codes.float() * x_scale) @ (w_codes.float() * w_scale.float()).t()).to(dtype)


def _scaled(sums: Tensor, x_scale: Tensor, w_scale: Tensor, dtype: torch.dtype) -> Tensor:
    return (sums * x_scale.float()).mul_(w_scale.float().t()).to(dtype)


def _nvidia(device: torch.device) -> tuple[int, int]:
    """The compute capability; (0, 0) where there is none."""
    if device.type != "cuda" or torch.version.hip is not None:
        return 0, 0
    return torch.cuda.get_device_capability(device)
