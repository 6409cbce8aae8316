"""What a cache, or quantized weights, do to the text: perplexity and recall of the embedded model.

evaluate(model, "int4")                         one cache: perplexity, recall by distance, bytes
sweep(model, ["contiguous", "int4", …])         several, on the same texts and questions
difference(one, other)                          what changed, with an interval, pair by pair
weight_quality(quantized, full)                 perplexity, recall and divergence of quantized weights
perplexity_change(one, other)                   what they change, with an interval, text by text
sensitivity_scan(model, full, fmt)              one layer quantized at a time
"""

from labcore.quality.harness import Quality, difference, evaluate, footprint, sweep
from labcore.quality.intervals import Estimate, wilson
from labcore.quality.perplexity import story_losses
from labcore.quality.recall import recalled
from labcore.quality.sensitivity import Sensitivity, sensitivity_scan
from labcore.quality.weights import WeightQuality, perplexity_change, recall_change, weight_quality

__all__ = [
    "Estimate",
    "Quality",
    "Sensitivity",
    "WeightQuality",
    "difference",
    "evaluate",
    "footprint",
    "perplexity_change",
    "recall_change",
    "recalled",
    "sensitivity_scan",
    "story_losses",
    "sweep",
    "weight_quality",
    "wilson",
]
