"""C kernels for the CPU: compiled at first use where a compiler is present, called on tensor pointers."""

from labcore.kernels.native.build import status
from labcore.kernels.native.decode_attention import KVMemory, NewTokens, of_native_layer
from labcore.kernels.native.layer import MOST_TOKENS, HeadKernel, LayerKernel, available, fits
from labcore.kernels.native.layers import GreedyKernel, LayersKernel
from labcore.kernels.native.quantized import Matrix
from labcore.kernels.native.watched import counted, labelled, profiled

__all__ = [
    "MOST_TOKENS",
    "GreedyKernel",
    "HeadKernel",
    "KVMemory",
    "LayerKernel",
    "LayersKernel",
    "Matrix",
    "NewTokens",
    "available",
    "counted",
    "fits",
    "labelled",
    "of_native_layer",
    "profiled",
    "status",
]
