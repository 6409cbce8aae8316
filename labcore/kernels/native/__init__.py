"""C kernels for the CPU: compiled at first use where a compiler is present, called on tensor pointers."""

from labcore.kernels.native.build import status
from labcore.kernels.native.decode_attention import DecodeAttention, of_native_layer
from labcore.kernels.native.layer import MOST_TOKENS, HeadKernel, LayerKernel, available, fits
from labcore.kernels.native.quantized import Matrix

__all__ = [
    "MOST_TOKENS",
    "DecodeAttention",
    "HeadKernel",
    "LayerKernel",
    "Matrix",
    "available",
    "fits",
    "of_native_layer",
    "status",
]
