"""Reading a stream: the metrics of one answer from its step times, and prompts to stream behind.

The clock is the engine's own (`Step.seconds`), so what a notebook spends on drawing is not counted.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from tqdm import tqdm

import labcore
from labcore.errors import LessonError
from labcore.generation.output import Step
from labcore.model import Model


@dataclass(frozen=True)
class StreamMetrics:
    """One answer as a user feels it. Seconds; tpot_s is None for a single token."""

    tokens: int
    ttft_s: float
    tpot_s: float | None
    latency_s: float
    tokens_per_s: float


def stream_metrics(step_seconds: Sequence[float]) -> StreamMetrics:
    """TTFT, TPOT, latency and throughput of one answer from the seconds of its steps, first to last."""
    n = len(step_seconds)
    ttft = step_seconds[0]
    latency = sum(step_seconds)
    tpot = (latency - ttft) / (n - 1) if n > 1 else None
    return StreamMetrics(n, ttft, tpot, latency, n / latency)


@dataclass
class Reading:
    """A stream that was read to its end. `text` is what a user saw, `step_seconds` one time per token."""

    model: str
    prompt_tokens: int
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    step_seconds: list[float] = field(default_factory=list)
    finish_reason: str | None = None

    def take(self, step: Step) -> None:
        """Add the stream's next step."""
        self.tokens.append(step.token)
        self.text += step.text
        self.step_seconds.append(step.seconds)
        self.finish_reason = step.finish_reason

    @property
    def metrics(self) -> StreamMetrics:
        """TTFT, TPOT, latency and throughput so far. Raises LessonError before the first token."""
        if not self.step_seconds:
            raise LessonError("This stream has given no token yet; read at least one step of it.")
        return stream_metrics(self.step_seconds)

    @property
    def gaps_s(self) -> list[float]:
        """Inter-token latencies: the single times between tokens (all steps but the first)."""
        return self.step_seconds[1:]

    def row(self) -> dict[str, Any]:
        """The reading as a row of a table."""
        m = self.metrics
        gaps = sorted(self.gaps_s) or [float("nan")]
        return {
            "prompt (tokens)": self.prompt_tokens,
            "output (tokens)": m.tokens,
            "TTFT (ms)": m.ttft_s * 1e3,
            "TPOT (ms)": None if m.tpot_s is None else m.tpot_s * 1e3,
            "median gap (ms)": statistics.median(gaps) * 1e3,
            "longest gap (ms)": gaps[-1] * 1e3,
            "latency (ms)": m.latency_s * 1e3,
            "throughput (tok/s)": m.tokens_per_s,
        }


def read(model: Model, prompt: str | list[int], *, max_new_tokens: int = 64, **settings: Any) -> Reading:
    """Stream an answer to its end without showing it. Settings as in `labcore.stream`."""
    reading = start_reading(model, prompt)
    for step in labcore.stream(model, prompt, max_new_tokens=max_new_tokens, **settings):
        reading.take(step)
    return reading


def start_reading(model: Model, prompt: str | list[int]) -> Reading:
    """An empty reading of an answer to `prompt`. Raises LessonError for text a model cannot read."""
    if isinstance(prompt, list):
        return Reading(model.name, len(prompt))
    if model.tokenizer is None:
        raise LessonError(f"{model.name} has no tokenizer; give it token ids, such as lab.prompt(model, 16).")
    return Reading(model.name, len(model.tokenizer.encode(prompt, add_bos=True)))


def readable(model: Model, text: str | list[int]) -> str | list[int]:
    """The prompt as this model can read it: text needs a tokenizer, without one random ids stand for it."""
    return prompt(model, 16) if isinstance(text, str) and model.tokenizer is None else text


def prompt(model: Model, length: int, seed: int = 0) -> list[int]:
    """`length` token ids to prompt a model with when only time and memory matter (random, but repeatable).

    Raises LessonError when the model's context is shorter.
    """
    limit = model.config.max_position_embeddings
    if not 1 <= length <= limit:
        raise LessonError(f"A prompt of {length} tokens does not fit {model.name}; take 1 to {limit}.")
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.vocab_size, (length,), generator=generator).tolist()


def many(model: Model, prompts: Iterable[list[int]], max_new_tokens: int) -> StreamMetrics:
    """Answer prompts of one length as one batch; the metrics count the tokens of all of them.

    TTFT and TPOT are those of the steps, which every sequence waits for; throughput is the batch's.
    """
    outputs = labcore.generate(model, list(prompts), max_new_tokens=max_new_tokens, ignore_eos=True)
    m = stream_metrics(outputs[0].step_seconds)
    tokens = sum(len(output.tokens) for output in outputs)
    return StreamMetrics(tokens, m.ttft_s, m.tpot_s, m.latency_s, tokens / m.latency_s)


@dataclass(frozen=True)
class BatchPoint:
    """One batch size: the median run of several, and the spread of its throughput (interquartile range)."""

    batch: int
    metrics: StreamMetrics
    spread: float

    def row(self) -> dict[str, Any]:
        """The point as a row of a table."""
        return {
            "batch (sequences)": self.batch,
            "TPOT (ms)": (self.metrics.tpot_s or float("nan")) * 1e3,
            "throughput, all together (tok/s)": self.metrics.tokens_per_s,
            "spread, IQR (tok/s)": self.spread,
        }


def sweep_batch(
    model: Model, batches: Sequence[int], *, prompt_length: int = 16, new_tokens: int = 24, repeats: int = 5
) -> list[BatchPoint]:
    """Answer that many prompts at once: per batch size one warm-up run, then `repeats`, the median kept."""
    points = []
    for batch in tqdm(batches, desc="measuring batches", unit="size", leave=False, ncols=80, file=sys.stdout):
        prompts = [prompt(model, prompt_length, seed) for seed in range(batch)]
        many(model, prompts, new_tokens)
        runs = sorted(
            (many(model, prompts, new_tokens) for _ in range(repeats)), key=lambda m: m.tokens_per_s
        )
        quarter = statistics.quantiles([m.tokens_per_s for m in runs], n=4)
        points.append(BatchPoint(batch, runs[repeats // 2], quarter[2] - quarter[0]))
    return points


def median_reading(model: Model, prompt_length: int, new_tokens: int, repeats: int = 5) -> Reading:
    """The stream of a typical run: each step's median time over `repeats` runs, after one to warm up.

    Step by step, because on a shared machine every run is held up somewhere, and no two at the same place.
    Random tokens go in, and an end-of-sequence token does not end it.
    """
    ids = prompt(model, prompt_length)
    runs = [read(model, ids, max_new_tokens=new_tokens, ignore_eos=True) for _ in range(repeats + 1)][1:]
    steps = zip(*(run.step_seconds for run in runs), strict=True)
    return replace(runs[0], step_seconds=[statistics.median(step) for step in steps])
