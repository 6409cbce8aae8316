"""Every kind of cache in one list, for the suites that all of them must pass."""

from __future__ import annotations

# Every kind, with settings under which it keeps everything: all of them must give plain attention then.
EXACT = {
    "none": "none",
    "growing": "growing",
    "contiguous": "contiguous",
    "sliding_window": "sliding_window:window=64",
    "sinks": "sinks:sinks=4,window=60",
    "heavy_hitters": "heavy_hitters:budget=1.0",
    "offloaded": "offloaded",
    "paged": "paged:block_size=4",
    "prefix": "prefix:block_size=4",
}

# Settings under which kinds forget or round: what a sequence gets must be its own all the same.
LOSSY = [
    "sliding_window:window=6", "sinks:sinks=2,window=5", "sinks:sinks=0,window=4",
    "heavy_hitters:budget=0.5", "heavy_hitters:budget=0.3,recent=0.3", "heavy_hitters:budget=6",
    "int8", "int4", "int2", "fp8", "int4:residual=3", "kivi4:group=4", "kivi2:group=4,residual=8",
]  # fmt: skip
