"""What else can multiply a `QuantLinear`: each path gives the layer's `reference` within rounding.

native: labcore's C kernels on a CPU. torch: PyTorch's dynamic int8 linear on a CPU. int8, fp8: both sides in
8 bits through a GPU's tensor cores. triton: codes that become numbers in registers, on a GPU, after whatever
rounding of activations the layer asks for. What a path lays out is kept with the layer (`QuantLinear.kept`);
codes for "native" and "int8" are the layer's own, turned in place of the stored ones. "torch" packs a second
copy, which only PyTorch can read.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from labcore.kernels import native, scaled
from labcore.kernels.around import Around
from labcore.kernels.native import quantized as native_quantized
from labcore.kernels.packing import pack, unpack
from labcore.perf import pages

if TYPE_CHECKING:
    from labcore.quant.linear import QuantLinear

Path = Callable[[Tensor], Tensor]


def available(layer: QuantLinear, x: Tensor) -> dict[str, Path]:
    """By name, those that this layer has for x where it lies."""
    if x.device.type == "cpu":
        return _on_cpu(layer, x)
    return _on_gpu(layer, x) if x.device.type == "cuda" else {}


def _on_cpu(layer: QuantLinear, x: Tensor) -> dict[str, Path]:
    found: dict[str, Path] = {}
    if x.dtype != torch.float32 or layer.outliers is not None:
        return found
    if (matrix := layer.native_matrix()) is not None:
        found["native"] = matrix
    if layer.activations == "tensor" and _packs(layer):
        found["torch"] = partial(dynamic, layer)
    return found


def _on_gpu(layer: QuantLinear, x: Tensor) -> dict[str, Path]:
    found: dict[str, Path] = {}
    if takes_int8(layer, x.device):
        found["int8"] = partial(int8, layer)
    if takes_fp8(layer, x.device, x.dtype):
        found["fp8"] = partial(fp8, layer)
    if takes_triton(layer):
        found["triton"] = partial(triton, layer)
    return found


# Both sides in 8 bits


def takes_int8(layer: QuantLinear, device: torch.device) -> bool:
    """Whether x and weights are both int8 with one scale a row or for all, so that sums can be scaled."""
    whole = layer.activations is not None and _one_scale(layer, "int8")
    return whole and scaled.takes_int8(device, layer.out_features, layer.in_features)


def takes_fp8(layer: QuantLinear, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether x and weights are both e4m3. Weights alone in fp8 leave x as it is, and are no such product."""
    whole = layer.activations is not None and _one_scale(layer, "fp8_e4m3")
    return whole and scaled.takes_fp8(device, layer.out_features, layer.in_features, dtype)


def int8(layer: QuantLinear, x: Tensor) -> Tensor:
    """Through torch._int_mm. LLM.int8()'s outlier columns are multiplied apart, as the definition does."""
    return _both_sides(layer, x, signed(in_rows(layer)), scaled.int8_linear)


def fp8(layer: QuantLinear, x: Tensor) -> Tensor:
    """Through torch._scaled_mm."""
    return _both_sides(layer, x, layer.codes, scaled.fp8_linear)


def _both_sides(layer: QuantLinear, x: Tensor, codes: Tensor, product: Callable[..., Tensor]) -> Tensor:
    h, apart = layer.incoming(x)
    each = layer.activations == "token"
    flat, scale = scaled.to_codes(
        h.reshape(-1, layer.in_features), codes.dtype, each_token=each, scale=layer.activation_scale
    )
    y = product(flat.contiguous(), scale.reshape(-1, 1), codes, layer.scale, h.dtype)
    return layer.outgoing(y.view(*x.shape[:-1], layer.out_features), apart)


def signed(codes: Tensor) -> Tensor:
    """int8 codes whatever way they lie: stored ones have 128 added, which is their highest bit turned."""
    return codes if codes.dtype == torch.int8 else (codes ^ 128).view(torch.int8)


def stored(codes: Tensor) -> Tensor:
    """The inverse of `signed`: uint8, as files hold them."""
    return codes.view(torch.uint8) ^ 128 if codes.dtype == torch.int8 else codes


def _one_scale(layer: QuantLinear, dtype: str) -> bool:
    """Symmetric, and without groups: a row's scale can be applied to its sum."""
    plain = layer.zero is None and layer.offset is None
    return plain and layer.format.dtype == dtype and layer.scale.shape[1] == 1


# Triton


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def takes_triton(layer: QuantLinear) -> bool:
    """Whether there is a weight-only kernel for the layer's matrix."""
    if not layer.format.is_integer or not _has_triton():
        return False
    from labcore.kernels.triton import weight_only

    group = layer.in_features // layer.scale.shape[1]
    return weight_only.takes(layer.format.bits, layer.in_features, group)


def triton(layer: QuantLinear, x: Tensor) -> Tensor:
    """Each code is read once and becomes a number in registers; sums in fp32."""
    from labcore.kernels.triton import weight_only

    h, apart = layer.incoming(x)
    grids = layer.kept("grids", partial(_grids, layer))
    y = weight_only.linear(layer.rounded(h), in_rows(layer), layer.format.bits, **grids)
    return layer.outgoing(y, apart)


def takes_fused(layer: QuantLinear) -> bool:
    """Whether a token can be multiplied along with its neighbours: nothing of its own is done to it.

    Asked of every layer at every step, so it is found out once.
    """
    takes: bool = layer.fast and layer.kept("takes_fused", partial(_takes_fused, layer))
    return takes


def _takes_fused(layer: QuantLinear) -> bool:
    changed = (layer.activations, layer.smooth, layer.order, layer.outliers)
    return all(part is None for part in changed) and takes_triton(layer)


def fused(layer: QuantLinear, x: Tensor, around: Around) -> Tensor:
    """x: (1, ..., columns). The layer's own bias is part of `around`."""
    from labcore.kernels.triton.coded_matvec import fused_linear

    grids = layer.kept("grids", partial(_grids, layer))
    return fused_linear(x, in_rows(layer), layer.format.bits, **grids, around=around)


def _grids(layer: QuantLinear) -> dict[str, Any]:
    """Scales and zero points with a row of their own for each row, which the kernel walks along."""
    parts = {"scale": layer.scale, "zero": layer.zero, "offset": layer.offset}
    grids: dict[str, Any] = {
        name: None if part is None else part.expand(layer.out_features, -1).contiguous()
        for name, part in parts.items()
    }
    return grids | {"centre": 0 if layer.codes.dtype == torch.int8 else _centre(layer)}


def _centre(layer: QuantLinear) -> int:
    """What is added to stored codes: half of their range where they are symmetric."""
    symmetric = layer.zero is None and layer.offset is None
    return 2 ** (layer.format.bits - 1) if symmetric else 0


# The native kernel


def takes_native(layer: QuantLinear) -> bool:
    """Whether the C kernel has this layer's product, on a CPU."""
    group = layer.in_features // layer.scale.shape[1]
    whole = layer.activations is None or (layer.activations == "token" and group == layer.in_features)
    cpu = layer.codes.device.type == "cpu" and layer.format.is_integer and layer.outliers is None
    return whole and cpu and native_quantized.takes(layer.format.bits, layer.in_features, group)


def lies_in_blocks(codes: Tensor) -> bool:
    """Whether codes lie as the C kernel reads them: (blocks, columns * bits / 32, 16, 4)."""
    return codes.dim() == 4


def in_rows(layer: QuantLinear) -> Tensor:
    """The layer's codes, or a copy where they lie in blocks: rows, packed as stored; a GPU's are signed."""
    if not lies_in_blocks(layer.codes):
        return layer.codes
    bits = layer.format.bits
    return pack(native_quantized.unlaid(layer.codes, bits, layer.out_features), bits)


def in_blocks(layer: QuantLinear) -> Tensor:
    """The layer's codes, or a copy where they lie in rows: as the C kernel reads them."""
    if lies_in_blocks(layer.codes):
        return layer.codes
    bits = layer.format.bits
    with torch.inference_mode(False):  # a buffer made in inference mode could not be written to outside
        return pages.like(native_quantized.laid_out(unpack(stored(layer.codes), bits), bits))


def rows_in_blocks(layer: QuantLinear, indices: Tensor) -> Tensor:
    """(n,) -> (n, packed): some rows as stored, of codes that lie in blocks. Below 0: from the last one."""
    bits, indices = layer.format.bits, indices + layer.out_features * (indices < 0)
    return pack(native_quantized.rows_of(layer.codes, bits, indices), bits)


def native_matrix(layer: QuantLinear) -> native.Matrix:
    """The layer as the C kernel reads it; its codes are the layer's own, laid out."""
    bits, offset = layer.format.bits, layer.offset
    if layer.zero is not None:
        offset = -layer.scale.float() * layer.zero.float()
    return native.Matrix(
        layer.codes, layer.out_features, bits, layer.scale, centre=_centre(layer),
        offset=offset, bias=None if layer.bias is None else layer.bias.float(), smooth=layer.smooth,
        order=layer.order, x_group=layer.in_features if layer.activations else None,
    )  # fmt: skip


# PyTorch's dynamic linear


def _packs(layer: QuantLinear) -> bool:
    return layer.smooth is None and layer.order is None and _one_scale(layer, "int8")


def dynamic(layer: QuantLinear, x: Tensor) -> Tensor:
    """PyTorch's dynamic int8 linear (fbgemm, oneDNN): one scale for all of x."""
    y: Tensor = torch.ops.quantized.linear_dynamic(x, layer.kept("packed", partial(_packed, layer)))
    return y


def _packed(layer: QuantLinear) -> Any:
    scale = layer.scale[:, 0].double().expand(layer.out_features)
    zeros = torch.zeros(layer.out_features, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the constructor is deprecated; the packed operator has no other
        weight = torch._make_per_channel_quantized_tensor(signed(in_rows(layer)), scale, zeros, 0)
    return torch.ops.quantized.linear_prepack(weight, layer.bias)
