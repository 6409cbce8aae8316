"""One function per operation of the Transformer; what runs behind it depends on the device.

Each function here has a plain twin in `reference.py`, written to be read and to be tested against.
"""

from labcore.kernels.attention import attention
from labcore.kernels.elementwise import apply_rope, norm_heads, rms_norm, rope_angles, swiglu
from labcore.kernels.on_gpu import plainly
from labcore.kernels.paged import (
    Chunks,
    contiguous_decode,
    gather_blocks,
    paged_attention,
    paged_decode,
    write_blocks,
)

__all__ = [
    "Chunks",
    "apply_rope",
    "attention",
    "contiguous_decode",
    "gather_blocks",
    "norm_heads",
    "paged_attention",
    "paged_decode",
    "plainly",
    "rms_norm",
    "rope_angles",
    "swiglu",
    "write_blocks",
]
