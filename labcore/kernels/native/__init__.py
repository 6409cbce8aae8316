"""C kernels for the CPU: compiled at first use where a compiler is present, called on tensor pointers."""

from labcore.kernels.native.build import status
from labcore.kernels.native.layer import LayerKernel, available, fits

__all__ = ["LayerKernel", "available", "fits", "status"]
