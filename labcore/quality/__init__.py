"""What a cache does to the text: perplexity and recall of the embedded model under any cache.

evaluate(model, "int4")                         one cache: perplexity, recall by distance, bytes
sweep(model, ["contiguous", "int4", …])         several, on the same texts and questions
difference(one, other)                          what changed, with an interval, pair by pair
"""

from labcore.quality.harness import Quality, difference, evaluate, footprint, sweep
from labcore.quality.intervals import Estimate, wilson
from labcore.quality.perplexity import story_losses
from labcore.quality.recall import recalled

__all__ = [
    "Estimate",
    "Quality",
    "difference",
    "evaluate",
    "footprint",
    "recalled",
    "story_losses",
    "sweep",
    "wilson",
]
