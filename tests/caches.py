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
