"""One function per operation of the Transformer; what runs behind it depends on the device.

Each function here has a plain twin in `reference.py`, written to be read and to be tested against.
"""

from labcore.kernels.attention import attention
from labcore.kernels.elementwise import apply_rope, norm_heads, rms_norm, swiglu
from labcore.kernels.paged import Chunks, gather_blocks, paged_attention, write_blocks

__all__ = [
    "Chunks",
    "apply_rope",
    "attention",
    "gather_blocks",
    "norm_heads",
    "paged_attention",
    "rms_norm",
    "swiglu",
    "write_blocks",
]
