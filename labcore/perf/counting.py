"""What a function does, counted while it runs: FLOPs, bytes and operations.

`costs.step_costs` knows a model from its shape; this knows nothing and watches. Bytes are those of operators
as they are, unfused: each reads its inputs and writes its outputs once, views cost nothing. Work outside of
PyTorch's operators (kernels called through ctypes or Triton directly) is not seen.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

# They make or describe a tensor and move none of its numbers.
_MOVE_NOTHING = {
    "_local_scalar_dense",
    "_unsafe_view",
    "detach_",
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "resize_",
    "set_",
}
# Of a large table they read the rows that they return, or write those that they are given.
_LOOKUPS = {"embedding", "gather", "index", "index_select"}
_UPDATES = {"index_copy_", "index_put_", "_index_put_impl_", "scatter_"}
# They write their first argument without having read it.
_OVERWRITES = {"copy_", "fill_", "normal_", "uniform_", "zero_"}
_COLLECTIVES = {"_c10d_functional", "c10d"}  # they move bytes between devices, not to and from memory


@dataclass(frozen=True)
class Counted:
    """What one call did. bytes: read and written by its operators; operations: those that move any.

    dtype: the floating-point format that most of the bytes are in.
    """

    flops: int
    bytes: int
    operations: int
    dtype: str = "float32"

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain data."""
        return asdict(self)


def count(fn: Callable[[], object]) -> Counted:
    """Call `fn` once and count. A multiply-add is 2 FLOP and only matrix products and attention count.

    Attention counts the whole rectangle of queries x keys, masked half included.
    """
    attention = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    with FlopCounterMode(display=False, custom_mapping=attention) as flops, _Traffic() as traffic:
        fn()
    dtype = max(traffic.by_dtype, key=lambda name: traffic.by_dtype[name], default="float32")
    return Counted(flops.get_total_flops(), traffic.bytes, traffic.operations, dtype)


def _attention_flops(q: torch.Size, k: torch.Size, v: torch.Size, *_: object, **__: object) -> int:
    """Shapes (B, h, n, d), (B, h_kv, T, d), (B, h_kv, T, d_v)."""
    return 2 * math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


class _Traffic(TorchDispatchMode):
    """Adds up what every operator reads and writes, below the operators that only call others."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.operations = 0, 0
        self.by_dtype: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, OpOverload):
            return func(*args, **kwargs)
        with self:  # in inference mode a `linear` comes here whole
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        result = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if not func.is_view and name not in _MOVE_NOTHING:
            self._add(_moved(func, name, args, kwargs, result))
        return result

    def _add(self, tensors: list[Tensor]) -> None:
        self.operations += 1
        for tensor in tensors:
            size = _nbytes(tensor)
            self.bytes += size
            if tensor.is_floating_point():
                self.by_dtype[str(tensor.dtype).removeprefix("torch.")] += size


def _moved(
    func: OpOverload, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> list[Tensor]:
    """The tensors that an operator reads, then those that it writes; one that it reads and writes, twice."""
    if func.namespace in _COLLECTIVES:
        return []
    written = list(_unique(result))
    if name in _LOOKUPS:  # as many numbers of the table as come out, and the places to look at
        return [*written, *written, *_unique([args[1:], kwargs])]
    if name in _UPDATES:
        values = list(_unique([args[1:], kwargs]))
        return [*values, *(tensor for tensor in values if tensor.is_floating_point())]
    ignored = {id(tensor) for tensor in tree_leaves(kwargs.get("out"))}
    if name in _OVERWRITES:
        ignored.add(id(args[0]))
    return [*(tensor for tensor in _unique([args, kwargs]) if id(tensor) not in ignored), *written]


def _unique(values: Any) -> Iterator[Tensor]:
    """The tensors in nested values, each once."""
    seen = set()
    for leaf in tree_leaves(values):
        if isinstance(leaf, Tensor) and id(leaf) not in seen:
            seen.add(id(leaf))
            yield leaf


def _nbytes(tensor: Tensor) -> int:
    """Bytes of a tensor's numbers, those that an expanded one shows several times counted once."""
    if tensor.layout != torch.strided:
        return tensor.numel() * tensor.element_size()
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    numbers = math.prod(size if stride or not size else 1 for size, stride in sizes)
    return numbers * tensor.element_size()
