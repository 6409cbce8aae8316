"""Linear layers whose weights are codes; what computes with them was measured on this device.

"reference" is the definition: read the weights back, multiply in full precision. It is what every other path
is tested against, and what runs with `fast = False`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labcore.errors import ConfigError
from labcore.kernels import native, scaled
from labcore.quant import choice, fast_paths
from labcore.quant.formats import FP8, Format, QuantizedTensor

Activations = Literal["token", "tensor", "static"]
FIELDS = ("codes", "scale", "zero", "offset", "bias", "smooth", "order", "activation_scale", "outliers",
          "outlier_weight")  # fmt: skip


class QuantLinear(nn.Module):
    """y = W x + b with W in codes.

    activations: how x is rounded to 8 bits first: per "token", per "tensor", "static" (activation_scale was
    measured before), to int8 or, with fp8 weights, to fp8 e4m3; None: not at all, by definition (the native
    kernel does, finely: see there).
    smooth (columns): x is multiplied by it. order (columns): x is permuted by it, as the codes' columns are.
    outliers (k,): columns that are multiplied in full precision with outlier_weight (rows, k).
    codes: there once, as what multiplies by them reads them: as QuantizedTensor has them; signed int8 where a
    GPU multiplies them by integers; in blocks of 16 rows once the native kernel took the layer. `quantized`
    and files have the first, whatever way they lie; `nbytes` counts what is stored, not a block's filling.
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
        with torch.inference_mode(False):  # buffers made in inference mode could not be loaded into later
            for name in FIELDS:
                tensor = given.get(name)
                self.register_buffer(name, None if tensor is None else tensor.detach().clone())
        self._kept: dict[str, Any] = {}
        self._turn()

    @property
    def quantized(self) -> QuantizedTensor:
        """The weight alone."""
        shape = (self.out_features, self.in_features)
        return QuantizedTensor(shape, self.format, self._stored(), self.scale, self.zero, self.offset)

    def rows(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        """(...) int64 -> (..., columns): some rows of the weight, as `quantized.rows`; only they are read."""
        if not fast_paths.lies_in_blocks(self.codes):
            return self.quantized.rows(tokens, dtype)
        flat = tokens.reshape(-1)
        picked: dict[str, Any] = {
            name: None if grid is None else grid.expand(self.out_features, -1)[flat]
            for name, grid in (("scale", self.scale), ("zero", self.zero), ("offset", self.offset))
        }
        codes, shape = fast_paths.rows_in_blocks(self, flat), (len(flat), self.in_features)
        some = QuantizedTensor(shape, self.format, codes, **picked)
        return some.dequantize(dtype).view(*tokens.shape, self.in_features)

    @property
    def kind(self) -> str:
        """What is multiplied by what, as the table of measured paths says: "int4", "int8 x int8"."""
        return self.format.dtype + (f" x {scaled.NAMES[self.activation_dtype]}" if self.activations else "")

    @property
    def activation_dtype(self) -> torch.dtype:
        """What activations are rounded to, where they are."""
        return scaled.E4M3 if self.format.dtype in FP8 else torch.int8

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is stored."""
        rest = sum(buffer.nbytes for name, buffer in self.named_buffers() if name != "codes")
        return rest + self.out_features * self.in_features * self.format.bits // 8

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
        return self.chosen(x)[1](x)

    def chosen(self, x: Tensor) -> tuple[str, Callable[[Tensor], Tensor]]:
        """The path that is quickest for so many tokens here: its name, and what computes."""
        found = self.paths(x)
        name = choice.pick(self.kind, x.numel() // self.in_features, x.device, list(found))
        return name, found[name]

    def paths(self, x: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
        """What can compute with x here, by name; the reference always can."""
        return (fast_paths.available(self, x) if self.fast else {}) | {"reference": self.reference}

    def reference(self, x: Tensor) -> Tensor:
        """The definition, in x's dtype."""
        h, apart = self.incoming(x)
        return self.outgoing(F.linear(self.rounded(h), self.quantized.dequantize(h.dtype)), apart)

    def incoming(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(x as the codes' columns want it, the outlier columns' product or None)."""
        h = x if self.order is None else x[..., self.order]
        h = h if self.smooth is None else h * self.smooth.to(h.dtype)
        if self.outliers is None or self.outlier_weight is None:
            return h, None
        apart = F.linear(h[..., self.outliers], self.outlier_weight.to(h.dtype))
        return h.index_fill(-1, self.outliers, 0), apart

    def rounded(self, h: Tensor) -> Tensor:
        """h after the rounding of activations that this layer asks for."""
        if self.activations is None:
            return h
        return rounded(h, self.activations, self.activation_scale, self.activation_dtype)

    def outgoing(self, y: Tensor, apart: Tensor | None) -> Tensor:
        """The product with what is added to it: outlier columns and bias."""
        y = y if apart is None else y + apart
        return y if self.bias is None else y + self.bias.to(y.dtype)

    # What paths lay out for themselves

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` made the first time; until the layer moves."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    def native_matrix(self) -> native.Matrix | None:
        """For the C kernel; the first call lays the codes out. None where it does not take such a layer."""
        matrix: native.Matrix | None = self._kept.get("native")
        if matrix is not None and matrix.codes is self.codes:
            return matrix
        if not fast_paths.takes_native(self):
            return None
        self.codes = fast_paths.in_blocks(self)
        self._kept["native"] = matrix = fast_paths.native_matrix(self)
        return matrix

    def _stored(self) -> Tensor:
        """Codes as files hold them; the buffer itself where it holds them so."""
        return fast_paths.stored(fast_paths.in_rows(self))

    def _turn(self) -> None:
        """Codes as this device multiplies them, without a second copy: signed for a GPU's int8 product."""
        device = self.codes.device
        if device.type == "cuda" and fast_paths.takes_int8(self, device):
            self.codes = fast_paths.signed(self.codes)
        else:
            self.codes = fast_paths.stored(self.codes)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantLinear:
        """Moves between devices; codes and scales keep their dtypes whatever the model is cast to."""
        self._kept, self.codes = {}, fast_paths.in_rows(self)

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(move, recurse)
        self._turn()
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Codes are stored the same whatever way they lie."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if (codes := self._stored()) is not self.codes:
            destination[f"{prefix}codes"] = codes

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """From stored codes, to how they lie here."""
        self._kept, self.codes = {}, self._stored()
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._turn()

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles have codes as they lie; pointers to them are of no use elsewhere."""
        return self.__dict__ | {"_kept": {}}

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


FEW_ROWS = 64  # one C call for so many; of more, PyTorch's operators read all at once


def _ensure_rows(tokens: Tensor, rows: int) -> None:
    """Raises IndexError as torch.nn.Embedding does: in C it would read what lies beside the table."""
    low, high = tokens.aminmax()
    if low < 0 or high >= rows:
        raise IndexError(f"Tokens from {int(low)} to {int(high)} have no rows in a table of {rows}.")


class QuantEmbedding(nn.Module):
    """The embedding that shares a quantized head's matrix: rows are read back as they are looked up."""

    def __init__(self, head: QuantLinear, dtype: torch.dtype, owned: bool = False) -> None:
        super().__init__()
        self._head, self.dtype = [head], dtype  # in a list: the head is not stored twice
        if owned:  # an embedding of its own codes, whose head is another matrix
            self.codes_of_rows = head

    def forward(self, tokens: Tensor) -> Tensor:
        """(...) int64 -> (..., hidden)."""
        head = self._head[0]
        laid = head.fast and fast_paths.lies_in_blocks(head.codes)
        if laid and tokens.numel() <= FEW_ROWS and (table := self.native_table()) is not None:
            _ensure_rows(tokens, head.out_features)
            return table.rows_at(tokens.flatten()).view(*tokens.shape, head.in_features)
        return head.rows(tokens, self.dtype)

    def native_table(self) -> native.Matrix | None:
        """For the C kernels, which read rows as they lie; None where they cannot."""
        head = self._head[0]
        as_they_lie = head.order is None and head.smooth is None and self.dtype == torch.float32
        return head.native_matrix() if as_they_lie else None


def rounded(
    x: Tensor, activations: Activations, scale: Tensor | None = None, dtype: torch.dtype = torch.int8
) -> Tensor:
    """x after a round trip through int8 or fp8 e4m3: absmax of each token, of the whole, or a scale known
    before."""
    return scaled.round_trip(x, dtype, each_token=activations == "token", scale=scale)


def plain_linear(layer: QuantLinear) -> nn.Linear:
    """A layer of plain fp32 weights that the codes stand for: what the rounding of weights alone does."""
    weight = layer.dense()
    made = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    made.weight = nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.float(), requires_grad=False)
    return made


__all__ = ["Format", "QuantEmbedding", "QuantLinear", "Stacked", "plain_linear", "rounded"]
