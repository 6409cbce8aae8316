"""`generate`, `stream` and `logits`: the engine as a user calls it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from labcore.cache import create
from labcore.errors import SamplingError
from labcore.generation.beam import beam_search
from labcore.generation.loop import Generation
from labcore.generation.output import FinishReason, Output, Step
from labcore.generation.prompts import Prompt, PromptBatch, encode_batch, is_batch
from labcore.generation.sampling import SamplingParams
from labcore.generation.text import TextStream
from labcore.generation.trace import TraceOptions, trace_options
from labcore.model import Model


def generate(
    model: Model,
    prompt: Prompt,
    *,
    max_new_tokens: int = 64,
    stop: str | Sequence[str] = (),
    ignore_eos: bool = False,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    cache: str = "contiguous",
    trace: bool | TraceOptions = False,
    **sampling: Any,
) -> Any:
    """Answer a prompt (text or token ids), or a list of prompts as one batch.

    sampling: the fields of SamplingParams (temperature, top_k, top_p, min_p, repetition_penalty, seed).
    Answers end at an end-of-sequence token (unless ignore_eos), at a stop string (not part of the text), after
    max_new_tokens, or where the model's context ends. Returns an Output, or a list of them for a list of prompts.
    Raises PromptError, SamplingError, OutOfMemory; see there.
    """
    params = SamplingParams(**sampling)
    _check_counts(max_new_tokens, num_beams)
    prompts = encode_batch(model, prompt)
    stops = _stop_strings(stop)
    if num_beams > 1:
        outputs = _beams(model, prompts, params, stops, num_beams, max_new_tokens, length_penalty, ignore_eos, cache, trace)
    else:
        run = Generation(model, prompts, params, max_new_tokens, cache, trace_options(trace))
        outputs = _run(run, stops, ignore_eos)
    return outputs if is_batch(prompt) else outputs[0]


def stream(
    model: Model,
    prompt: Prompt,
    *,
    max_new_tokens: int = 64,
    stop: str | Sequence[str] = (),
    ignore_eos: bool = False,
    cache: str = "contiguous",
    **sampling: Any,
) -> Iterator[Step]:
    """Answer one prompt step by step; arguments as in `generate`. Errors are raised by the call, not by the first step."""
    if is_batch(prompt):
        raise SamplingError("stream answers one prompt at a time; use generate for a list of prompts.")
    params = SamplingParams(**sampling)
    _check_counts(max_new_tokens, 1)
    answer = _Answer(model, [], _stop_strings(stop), ignore_eos)
    run = Generation(model, encode_batch(model, prompt), params, max_new_tokens, cache)
    return _stream(run, answer)


@torch.inference_mode()
def logits(model: Model, tokens: Any) -> Tensor:
    """Logits of every position: (batch, seq) or (seq,) tokens -> (batch, seq, vocab) fp32. No padding is applied."""
    batch = torch.as_tensor(tokens, device=model.device)
    batch = batch[None] if batch.dim() == 1 else batch
    cache = create("none", model.config, batch_size=batch.shape[0], device=model.device, dtype=model.dtype)
    out: Tensor = model.transformer(batch, cache)
    return out.float()


class _Answer:
    """One sequence's side of a batch: takes tokens until it has ended."""

    def __init__(self, model: Model, prompt: list[int], stops: Sequence[str], ignore_eos: bool) -> None:
        self.output = Output(prompt_tokens=prompt)
        self.ended: FinishReason | None = None
        self._text = TextStream(model.tokenizer, stops)
        self._eos = () if ignore_eos else model.config.eos_token_ids

    def push(self, token: int, seconds: float, last: bool) -> str:
        """Take a token; returns the text it made visible. `last`: no more tokens will come."""
        self.output.tokens.append(token)
        self.output.step_seconds.append(seconds)
        shown = "" if token in self._eos else self._text.push(token)
        if token in self._eos:
            self.ended = "eos"
        elif self._text.stopped:
            self.ended = "stop"
        elif last:
            self.ended = "length"
        if self.ended:
            shown += self._text.flush()
            self.output.finish_reason = self.ended
            self.output.text = self._text.text
        return shown


def _run(run: Generation, stops: Sequence[str], ignore_eos: bool) -> list[Output]:
    answers = [_Answer(run.model, tokens, stops, ignore_eos) for tokens in run.prompts.lists]
    for step in run:
        last = step.index == run.new_tokens - 1
        for answer, token in zip(answers, step.tokens, strict=True):
            if not answer.ended:
                answer.push(token, step.seconds, last)
        if all(answer.ended for answer in answers):
            break
    answers[0].output.trace = run.trace
    return [answer.output for answer in answers]


def _stream(run: Generation, answer: _Answer) -> Iterator[Step]:
    for step in run:
        token = step.tokens[0]
        text = answer.push(token, step.seconds, last=step.index == run.new_tokens - 1)
        phase = "decode" if step.index else "prefill"
        yield Step(step.index, phase, token, text, step.seconds, answer.ended)  # type: ignore[arg-type]
        if answer.ended:
            return


def _beams(
    model: Model,
    prompts: PromptBatch,
    params: SamplingParams,
    stops: Sequence[str],
    num_beams: int,
    max_new_tokens: int,
    length_penalty: float,
    ignore_eos: bool,
    cache: str,
    trace: bool | TraceOptions,
) -> list[Output]:
    """Beam search, one prompt after the other."""
    if params != SamplingParams(seed=params.seed) or stops or trace:
        raise SamplingError("Beam search takes no sampling settings, stop strings or trace; set num_beams=1 for those.")
    outputs = []
    for tokens in prompts.lists:
        one = PromptBatch(torch.tensor([tokens], device=model.device), torch.zeros(1, dtype=torch.int64), [tokens])
        output = beam_search(
            model, one, num_beams=num_beams, max_new_tokens=max_new_tokens,
            length_penalty=length_penalty, ignore_eos=ignore_eos, cache=cache,
        )  # fmt: skip
        output.text = model.tokenizer.decode(output.tokens) if model.tokenizer else ""
        outputs.append(output)
    return outputs


def _stop_strings(stop: str | Sequence[str]) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) and stop else tuple(stop)


def _check_counts(max_new_tokens: int, num_beams: int) -> None:
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise SamplingError(f"max_new_tokens is {max_new_tokens!r}; it must be a whole number of at least 1.")
    if not isinstance(num_beams, int) or num_beams < 1:
        raise SamplingError(f"num_beams is {num_beams!r}; it must be a whole number of at least 1.")
