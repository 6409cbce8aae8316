"""Which kind of work the name of an operator, a kernel or a label stands for.

Three sorts of name come out of a trace: operators ("aten::addmm"), kernels of a device
("void at::native::vectorized_elementwise_kernel<...>", "ncclDevKernel_AllReduce_Sum") and labels that code
put there ("labcore::attention_native", "gloo:all_reduce"). Operators have a closed vocabulary, so they are
looked up; the others are recognised by their parts.
"""

from __future__ import annotations

import re
from functools import lru_cache

ATTENTION = "attention"
MATMUL = "matmul"
ELEMENTWISE = "norm and elementwise"
COPIES = "copies"
COMMUNICATION = "communication"
OTHER = "other"
GAPS = "launch gaps"

KINDS = (ATTENTION, MATMUL, ELEMENTWISE, COPIES, COMMUNICATION, OTHER, GAPS)

# Operators of aten without the underscores around their names. The last only describe or reserve memory, or
# only call others: what they take is the price of asking.
_OPERATORS = {
    MATMUL: """addbmm addmm addmv baddbmm bilinear bmm chain_matmul conv1d conv2d convolution dot einsum inner
        int_mm linear matmul mkldnn_linear mm mv outer scaled_mm tensordot vdot weight_int4pack_mm
        weight_int8pack_mm""",
    COPIES: """cat clone constant_pad_nd copy embedding embedding_bag flip gather hstack index index_add
        index_copy index_fill index_put index_put_impl index_select masked_select pad repeat
        repeat_interleave roll scatter scatter_add slice_scatter stack take to_copy unsafe_index vstack""",
    ELEMENTWISE: """abs add addcdiv addcmul all amax amin any bitwise_and bitwise_not bitwise_or ceil clamp
        clamp_max clamp_min cos cumsum div eq erf exp fill floor floor_divide fused_rms_norm ge gelu
        group_norm gt layer_norm le lerp log log_softmax logical_and logical_not logical_or logsumexp lt
        masked_fill max maximum mean min minimum mul native_group_norm native_layer_norm ne neg norm ones
        pow prod reciprocal relu remainder rms_norm round rsqrt rsub safe_softmax sigmoid sign silu sin
        softmax sqrt square std sub sum tanh tril triu true_divide var where zero zeros""",
    GAPS: """alias as_strided broadcast_tensors broadcast_to chunk conj contiguous detach diagonal empty
        empty_like empty_strided expand expand_as flatten is_nonzero item lift_fresh local_scalar_dense
        movedim narrow new_empty new_empty_strided permute pin_memory real record_stream reshape
        reshape_alias reshape_as resize resolve_conj resolve_neg result_type select set slice split
        split_with_sizes squeeze swapaxes t tensor_split to transpose type_as unbind unflatten unfold
        unsafe_view unsqueeze view view_as""",
}  # fmt: skip


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


_KIND_OF = {name: kind for kind, names in _OPERATORS.items() for name in names.split()}

_ATTENDS = _any(r"scaled_dot_product|sdpa|flash|fmha|attention|attend|attn|paged|^_merge$")
# In this order: flash attention is built of gemms, a copy kernel is an elementwise kernel.
_PARTS = (
    (
        COMMUNICATION,
        _any(
            r"^(c10d|_c10d_functional|nccl|gloo|mpi|ucc)\b",
            r"nccl|all_?reduce|all_?gather|reduce_?scatter|all_?to_?all|cross_device_reduce|record_param_comms",
        ),
    ),
    (ATTENTION, _ATTENDS),
    (
        MATMUL,
        _any(
            r"gemm|gemv|cutlass|xmma|nvjet|split_?k|wgmma|matmul|linear|triton_tem|triton_mm",
            r"_mm_|addmm|\bmm\b|dot_kernel|^_(one|few|tiles)$",
        ),
    ),
    (COPIES, _any(r"memcpy|memset|copy|embedding|gather|scatter|index|CatArray|concat|^_write$")),
    (
        ELEMENTWISE,
        _any(
            r"elementwise|pointwise|softmax|norm|silu|gelu|swiglu|rope|rotary|^_angles$|reduce_kernel|fused|Functor",
            r"triton_(poi|red|per)",
        ),
    ),
)
# A label is anyone's words: only those of the engine and of the communication libraries are believed.
_BELIEVED = re.compile(r"^(labcore::|nccl:|gloo:|c10d::|ucc:|mpi:)")
# Inductor's own loops run inside of this label; the library calls among them have events of their own.
_COMPILED = "CompiledFxGraph"


@lru_cache(maxsize=4096)
def kind_of(name: str) -> str | None:
    """The kind of an operator, kernel or label by its name alone; None where the name does not tell."""
    if name.startswith("aten::"):
        base = name.removeprefix("aten::").strip("_")
        if _ATTENDS.search(base):
            return ATTENTION
        kind = _KIND_OF.get(base)
        return None if kind == GAPS else kind
    return next((kind for kind, pattern in _PARTS if pattern.search(name)), None)


def whole_kind(name: str, label: bool = False) -> str | None:
    """The kind that a host event gives to everything inside it; None where its insides speak for themselves.

    label: the event was put there by `record_function`, not by PyTorch's dispatcher.
    """
    believed = not label or _BELIEVED.match(name)
    return kind_of(name) if believed and _COMPILED not in name else None


def own_kind(name: str, label: bool = False) -> str | None:
    """The kind of the time that a host event spends outside of the events in it; None: it only asks.

    For events without a `whole_kind`: PyTorch's views and labels only ask; unknown operators work.
    """
    if _COMPILED in name:
        return ELEMENTWISE
    if label or "::" not in name:  # without a namespace: calls of the device's driver and of Python
        return None
    return None if _KIND_OF.get(name.split("::", 1)[1].strip("_")) == GAPS else OTHER
