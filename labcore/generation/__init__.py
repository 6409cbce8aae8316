"""Prefill, decode, sampling, beam search, and a trace of it all."""

from labcore.generation.api import generate, logits, stream
from labcore.generation.loop import decode_step, prefill
from labcore.generation.output import Output, Step
from labcore.generation.sampling import Sampler, SamplingParams, draw, process_logits
from labcore.generation.speculation import Drafter, DraftModel, PromptLookup
from labcore.generation.steps import StepKind, WarmUp, warm_up
from labcore.generation.trace import Candidate, Trace, TraceOptions, TraceStep

__all__ = [
    "Candidate",
    "DraftModel",
    "Drafter",
    "Output",
    "PromptLookup",
    "Sampler",
    "SamplingParams",
    "Step",
    "StepKind",
    "Trace",
    "TraceOptions",
    "TraceStep",
    "WarmUp",
    "decode_step",
    "draw",
    "generate",
    "logits",
    "prefill",
    "process_logits",
    "stream",
    "warm_up",
]
