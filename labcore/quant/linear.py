"""Linear layers whose weights are codes; what computes with them was measured on this device.

"reference" is the definition: read the weights back, multiply in full precision. It is what every other path
is tested against, and what runs with `fast = False`.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labcore.errors import ConfigError
from labcore.kernels import native
from labcore.kernels.native import quantized as native_quantized
from labcore.kernels.packing import unpack
from labcore.quant import choice
from labcore.quant.formats import Format, QuantizedTensor

Activations = Literal["token", "tensor", "static"]
FIELDS = ("codes", "scale", "zero", "offset", "bias", "smooth", "order", "activation_scale", "outliers",
          "outlier_weight")  # fmt: skip


class QuantLinear(nn.Module):
    """y = W x + b with W in codes.

    activations: how x is rounded to 8 bits first: per "token", per "tensor", "static" (activation_scale was
    measured before); None: not at all, by definition (the native kernel does, finely: see there).
    smooth (columns): x is multiplied by it. order (columns): x is permuted by it, as the codes' columns are.
    outliers (k,): columns that are multiplied in full precision with outlier_weight (rows, k).
    Raises ConfigError for static activations without a scale, outliers without weights.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    offset: Tensor | None
    bias: Tensor | None
    smooth: Tensor | None
    order: Tensor | None
    activation_scale: Tensor | None
    outliers: Tensor | None
    outlier_weight: Tensor | None

    def __init__(
        self,
        weight: QuantizedTensor,
        bias: Tensor | None = None,
        *,
        activations: Activations | None = None,
        activation_scale: Tensor | None = None,
        smooth: Tensor | None = None,
        outliers: Tensor | None = None,
        outlier_weight: Tensor | None = None,
        order: Tensor | None = None,
    ) -> None:
        super().__init__()
        if (activations == "static") != (activation_scale is not None):
            raise ConfigError(
                "Static activations need an activation_scale, and only they do; give both or none."
            )
        if (outliers is None) != (outlier_weight is None):
            raise ConfigError("Outlier columns need their weights in full precision; give both or none.")
        self.out_features, self.in_features = weight.shape
        self.format, self.activations, self.fast = weight.format, activations, True
        given = weight.tensors() | {
            "bias": bias, "smooth": smooth, "order": order, "activation_scale": activation_scale,
            "outliers": outliers, "outlier_weight": outlier_weight,
        }  # fmt: skip
        for name in FIELDS:
            tensor = given.get(name)
            self.register_buffer(name, None if tensor is None else tensor.detach().clone())
        self._native: native.Matrix | None = None
        self._packed: Any = None

    @property
    def quantized(self) -> QuantizedTensor:
        """The weight alone."""
        shape = (self.out_features, self.in_features)
        return QuantizedTensor(shape, self.format, self.codes, self.scale, self.zero, self.offset)

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is stored."""
        return sum(buffer.nbytes for buffer in self.buffers())

    def dense(self) -> Tensor:
        """(rows, columns) fp32: the plain matrix that this layer multiplies by, outliers included."""
        weight = self.quantized.dequantize()
        if self.smooth is not None:
            weight = weight * self.smooth
        if self.outliers is not None and self.outlier_weight is not None:
            weight[:, self.outliers] = self.outlier_weight.float()
        if self.order is not None:
            weight = weight[:, self.order.long().argsort()]
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """(..., columns) -> (..., rows) in x's dtype."""
        paths = self.paths(x)
        name = choice.pick(self.format.bits, x.numel() // self.in_features, x.device, list(paths))
        return paths[name](x)

    def paths(self, x: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
        """What can compute with x here, by name; the reference always can."""
        found: dict[str, Callable[[Tensor], Tensor]] = {}
        if self.fast and self.outliers is None and x.device.type == "cpu" and x.dtype == torch.float32:
            if (matrix := self.native_matrix()) is not None:
                found["native"] = matrix
            if self.activations == "tensor" and self._packs():
                found["torch"] = self._torch_dynamic
        if self.fast and x.device.type == "cuda" and self._takes_triton():
            found["triton"] = self._triton
        return found | {"reference": self.reference}

    def reference(self, x: Tensor) -> Tensor:
        """The definition, in x's dtype."""
        h = x if self.order is None else x[..., self.order]
        h = h if self.smooth is None else h * self.smooth.to(h.dtype)
        apart = None
        if self.outliers is not None and self.outlier_weight is not None:
            apart = F.linear(h[..., self.outliers], self.outlier_weight.to(h.dtype))
            h = h.index_fill(-1, self.outliers, 0)
        if self.activations:
            h = rounded(h, self.activations, self.activation_scale)
        y = F.linear(h, self.quantized.dequantize(h.dtype))
        y = y if apart is None else y + apart
        return y if self.bias is None else y + self.bias.to(y.dtype)

    # The native kernel

    def native_matrix(self) -> native.Matrix | None:
        """Laid out for the C kernel, once; None where it does not take such a layer."""
        if self._native is None and self._takes_native():
            self._native = self._laid_out()
        return self._native

    def _takes_native(self) -> bool:
        group = self.in_features // self.scale.shape[1]
        whole = self.activations is None or (self.activations == "token" and group == self.in_features)
        cpu = self.codes.device.type == "cpu" and self.format.is_integer and self.outliers is None
        return whole and cpu and native_quantized.takes(self.format.bits, self.in_features, group)

    def _laid_out(self) -> native.Matrix:
        bits = self.format.bits
        symmetric = self.zero is None and self.offset is None
        offset = self.offset
        if self.zero is not None:
            offset = -self.scale.float() * self.zero.float()
        return native.Matrix(
            unpack(self.codes, bits), bits, self.scale, centre=2 ** (bits - 1) if symmetric else 0,
            offset=offset, bias=None if self.bias is None else self.bias.float(), smooth=self.smooth,
            order=self.order, x_group=self.in_features if self.activations else None,
        )  # fmt: skip

    # Triton, on a GPU

    def _takes_triton(self) -> bool:
        plain = self.activations is None and self.outliers is None and self.format.is_integer
        if not plain or not _has_triton():
            return False
        from labcore.kernels.triton import weight_only

        return weight_only.takes(self.format.bits, self.in_features, self.in_features // self.scale.shape[1])

    def _triton(self, x: Tensor) -> Tensor:
        """Codes become numbers in registers; the vector keeps its own precision."""
        from labcore.kernels.triton import weight_only

        h = x if self.order is None else x[..., self.order]
        h = h if self.smooth is None else h * self.smooth.to(h.dtype)
        symmetric = self.zero is None and self.offset is None
        parts = {"scale": self.scale, "zero": self.zero, "offset": self.offset}
        grids: dict[str, Any] = {
            name: None if part is None else part.expand(self.out_features, -1).contiguous()
            for name, part in parts.items()
        }
        centre = 2 ** (self.format.bits - 1) if symmetric else 0
        y = weight_only.linear(h, self.codes, self.format.bits, **grids, centre=centre)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    # PyTorch's own

    def _packs(self) -> bool:
        plain = self.smooth is None and self.order is None and self.zero is None and self.offset is None
        return plain and self.format.dtype == "int8" and self.scale.shape[1] == 1

    def _torch_dynamic(self, x: Tensor) -> Tensor:
        """PyTorch's dynamic int8 linear (fbgemm, oneDNN): one scale for all of x."""
        if self._packed is None:
            scale = self.scale[:, 0].double().expand(self.out_features)
            zeros = torch.zeros(self.out_features, dtype=torch.int64)
            codes = (unpack(self.codes, 8).to(torch.int16) - 128).to(torch.int8)
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore"
                )  # the constructor is deprecated; the packed operator has no other
                weight = torch._make_per_channel_quantized_tensor(codes, scale, zeros, 0)
            self._packed = torch.ops.quantized.linear_prepack(weight, self.bias)
        y: Tensor = torch.ops.quantized.linear_dynamic(x, self._packed)
        return y

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantLinear:
        """Moves between devices; codes and scales keep their dtypes whatever the model is cast to."""
        self._native = self._packed = None

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(move, recurse)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles lay their own codes out; pointers are of no use to them."""
        return self.__dict__ | {"_native": None, "_packed": None}

    def extra_repr(self) -> str:
        """For print(model)."""
        return (
            f"{self.in_features} -> {self.out_features}, {self.format.label}, activations={self.activations}"
        )


class Stacked(nn.Module):
    """Linear layers whose outputs lie side by side: a fused matrix whose parts are held differently."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        """(..., columns) -> (..., all rows)."""
        return torch.cat([part(x) for part in self.parts], dim=-1)


class QuantEmbedding(nn.Module):
    """The embedding that shares a quantized head's matrix: rows are read back as they are looked up."""

    def __init__(self, head: QuantLinear, dtype: torch.dtype, owned: bool = False) -> None:
        super().__init__()
        self._head, self.dtype = [head], dtype  # in a list: the head is not stored twice
        if owned:  # an embedding of its own codes, whose head is another matrix
            self.codes_of_rows = head

    def forward(self, tokens: Tensor) -> Tensor:
        """(...) int64 -> (..., hidden)."""
        return self._head[0].quantized.rows(tokens, self.dtype)


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def rounded(x: Tensor, activations: Activations, scale: Tensor | None = None) -> Tensor:
    """x after a round trip through 8 bits: absmax of each token, of the whole, or a scale known before."""
    if scale is None:
        largest = x.abs().amax(-1, keepdim=True) if activations == "token" else x.abs().amax()
        scale = (largest.float() / 127).clamp_min(1e-12)
    return ((x / scale).round().clamp(-127, 127) * scale).to(x.dtype)


def plain_linear(layer: QuantLinear) -> nn.Linear:
    """A layer of plain fp32 weights that the codes stand for: what the rounding of weights alone does."""
    weight = layer.dense()
    made = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    made.weight = nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.float(), requires_grad=False)
    return made


__all__ = ["Format", "QuantEmbedding", "QuantLinear", "Stacked", "plain_linear", "rounded"]
