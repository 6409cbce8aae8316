"""`generate`, `stream` and `logits`: the engine as a user calls it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from labcore.cache import CacheChoice, create, is_endless
from labcore.errors import NotSupported, SamplingError
from labcore.generation.answer import Answer
from labcore.generation.beam import BeamParams, beam_search
from labcore.generation.loop import BatchStep, Generation
from labcore.generation.memory import memory_told
from labcore.generation.output import Output, Phase, Step
from labcore.generation.prompts import Prompt, encode_batch, is_batch
from labcore.generation.sampling import SamplingParams
from labcore.generation.speculation import Drafter
from labcore.generation.steps import StepKind
from labcore.generation.stopping import Stopping
from labcore.generation.trace import TraceOptions, trace_options
from labcore.model import Model


@overload
def generate(model: Model, prompt: str | Sequence[int] | Tensor, **settings: Any) -> Output: ...
@overload
def generate(
    model: Model, prompt: Sequence[str] | Sequence[Sequence[int]], **settings: Any
) -> list[Output]: ...
def generate(
    model: Model,
    prompt: Prompt,
    *,
    max_new_tokens: int = 64,
    stop: str | Sequence[str] = (),
    ignore_eos: bool = False,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    cache: CacheChoice = "contiguous",
    step: StepKind = "eager",
    trace: bool | TraceOptions = False,
    speculation: Drafter | None = None,
    **sampling: Any,
) -> Output | list[Output]:
    """Answer a prompt (text or token ids), or a list of prompts as one batch.

    sampling: the fields of SamplingParams (temperature, top_k, top_p, min_p, repetition_penalty, seed).
    Prompt i of a list draws with seed + i, and what it gets does not depend on the others.
    Answers end at an end-of-sequence token (unless ignore_eos), at a stop string (not part of the text),
    after max_new_tokens, or where the model's context ends (kinds of cache that roll go on past it).
    cache: a kind, alone or with settings ("sinks:sinks=4,window=60"), a CacheSpec, or a factory.
    step: how decode steps are run: "eager", "compiled" (torch.compile) or "graph" (CUDA graphs); the last two
    with the contiguous cache only, and with a wait at first use (see warm_up).
    trace: record every step of the first answer.
    speculation: what guesses tokens, which are then checked several at a time: a DraftModel, a PromptLookup
    or another Drafter (see `generation.speculation`); for one prompt. The answer is the one without, whatever
    the temperature: each new token has a random number of its own, which the seed decides.
    Returns an Output, or a list of them for a list of prompts.
    Raises PromptError, SamplingError, OutOfMemory, NotFinite (for logits of NaN or infinity), and for `step`
    ConfigError, DeviceError, NotSupported.
    """
    params = SamplingParams(**sampling)
    stopping = Stopping(max_new_tokens, stop, ignore_eos)
    beams = BeamParams(num_beams, length_penalty)
    prompts = encode_batch(model, prompt, is_endless(cache))
    if num_beams > 1:
        if params != SamplingParams(seed=params.seed) or stopping.strings or trace:
            raise SamplingError(
                "Beam search takes no sampling settings, stop strings or trace; set num_beams=1 for those."
            )
        if step != "eager" or speculation is not None:
            asked = "speculation" if speculation is not None else f"step={step!r}"
            raise NotSupported(f"Beam search runs plain eager steps, not {asked}; set num_beams=1 for that.")
        with memory_told(model):
            outputs = [beam_search(model, one, beams, stopping, cache) for one in prompts.singles()]
    else:
        with memory_told(model):
            run = Generation(model, prompts, params, stopping, cache, trace_options(trace), step, speculation)
            outputs = _run(run)
    return outputs if is_batch(prompt) else outputs[0]


def stream(
    model: Model,
    prompt: Prompt,
    *,
    max_new_tokens: int = 64,
    stop: str | Sequence[str] = (),
    ignore_eos: bool = False,
    cache: CacheChoice = "contiguous",
    step: StepKind = "eager",
    speculation: Drafter | None = None,
    **sampling: Any,
) -> Iterator[Step]:
    """Answer one prompt step by step; arguments as in `generate`, errors raised before the first step."""
    if is_batch(prompt):
        raise SamplingError("stream answers one prompt at a time; use generate for a list of prompts.")
    params = SamplingParams(**sampling)
    stopping = Stopping(max_new_tokens, stop, ignore_eos)
    prompts = encode_batch(model, prompt, is_endless(cache))
    run = Generation(model, prompts, params, stopping, cache, step=step, speculation=speculation)
    return _stream(run)


@torch.inference_mode()
def logits(model: Model, tokens: Any) -> Tensor:
    """Logits of every position, without padding: (batch, seq) or (seq,) ids -> (batch, seq, vocab) fp32."""
    batch = torch.as_tensor(tokens, device=model.device)
    batch = batch[None] if batch.dim() == 1 else batch
    cache = create("none", model.config, batch_size=batch.shape[0], device=model.device, dtype=model.dtype)
    with memory_told(model):
        out: Tensor = model.transformer(batch, cache)
        return out.float()


def _run(run: Generation) -> list[Output]:
    """All steps of a batch. An answer that has ended waits for the others, its further tokens ignored."""
    answers = [Answer(run.model, tokens, run.stopping) for tokens in run.prompts.lists]
    for step in run:
        for answer, token, room in zip(answers, step.tokens, run.rooms, strict=True):
            if not answer.ended:
                answer.push(token, step.seconds, last=step.index == room - 1)
        if all(answer.ended for answer in answers):
            break
    first = answers[0].output
    first.trace, first.drafted, first.accepted = run.trace, run.drafted, run.accepted
    return [answer.output for answer in answers]


def _stream(run: Generation) -> Iterator[Step]:
    answer = Answer(run.model, run.prompts.lists[0], run.stopping)
    for step in _told(run):
        token = step.tokens[0]
        text = answer.push(token, step.seconds, last=step.index == run.new_tokens - 1)
        phase: Phase = "decode" if step.index else "prefill"
        yield Step(step.index, phase, token, text, step.seconds, answer.ended)
        if answer.ended:
            return


def _told(run: Generation) -> Iterator[BatchStep]:
    """The steps of a run, a failed allocation told."""
    with memory_told(run.model):
        yield from run
