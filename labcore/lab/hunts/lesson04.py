"""Hunts of lesson 4: a block that is never given back, and a window with a wrong edge.

`trim` is PagedCache's method under a plain name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from labcore.cache import PagedCache
from labcore.lab.exercises.checking import Verdict, of_faults
from labcore.lab.exercises.loops import tiny_model
from labcore.lab.hunts.registry import planted

trim = PagedCache.trim
__all__ = ["trim"]


@planted(
    "04.A",
    title="The pool that is full of nobody",
    target="labcore.lab.hunts.lesson04:trim",
    bug=(("        pool.free(table[keep:])\n        del table[keep:]", "        del table[keep:]"),),
    minutes=6,
    hints=(
        "Print pool.num_used before and after truncate(0): who still holds these blocks?",
        "A block has two ends: the table that names it, and the pool that counts who does. Both "
        "must hear of it.",
    ),
)
def _check_leak(suspect: Callable[..., Any]) -> Verdict:
    """Sequences that are preempted (truncated to nothing) must leave the pool as they found it."""
    model = tiny_model()
    cache_type = type("Suspect", (PagedCache,), {"trim": suspect})
    faults = []
    for length, back in ((5, 0), (12, 0), (9, 4)):
        cache = cache_type(model.config, 1, 32, torch.device("cpu"), torch.float32, block_size=4)
        with torch.inference_mode():
            model.transformer(torch.zeros(1, length, dtype=torch.int64), cache)
        before, needed = cache.store.pool.num_used, -(-back // 4)
        cache.truncate(back)
        used = cache.store.pool.num_used
        if used != needed:
            faults.append(
                f"{length} tokens took {before} blocks of 4; cut back to {back} the sequence "
                f"needs {needed}, and the "
                f"pool still counts {used} as held."
            )
    return of_faults(faults, 3, "histories", "every block came back")


@planted(
    "04.B",
    title="One token too many in sight",
    target="labcore.cache.sliding_window:window_mask",
    bug=(("(distance < window)", "(distance <= window)"),),
    minutes=5,
    hints=(
        "Take a window of 1 and a query at position 3: which keys should it see?",
        "A window of w holds the query itself and w - 1 before it: distances 0 to w - 1.",
    ),
)
def _check_mask(suspect: Callable[..., Any]) -> Verdict:
    """Every query sees itself and the window - 1 positions before it, and nothing later."""
    cases = ((1, 4), (3, 6), (8, 5), (2, 9))
    faults = []
    for window, length in cases:
        at = torch.arange(length)
        seen = suspect(at, at, window)
        for query in range(length):
            expected = list(range(max(0, query - window + 1), query + 1))
            found = seen[query].nonzero().flatten().tolist()
            if found != expected:
                faults.append(f"Window {window}, query {query}: it sees {found} and should see {expected}.")
                break
    return of_faults(faults, len(cases), "windows", "each query sees its window")
