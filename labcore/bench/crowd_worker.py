"""One learner of `labcore bench crowd`: a process that loads the model and generates when it is told to.

It answers with lines of JSON: once when it is ready, and for every line of its input, which is a number of
seconds, after so many seconds of generating. It ends with its input.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any, TextIO

import torch

import labcore
from labcore import openmp
from labcore.bench.usual import random_prompt
from labcore.errors import LabError
from labcore.model import Model
from labcore.parallel.workers import die_with
from labcore.perf.budget import resident_bytes

# How threads wait for each other, and how many there are: set from outside, or by labcore itself.
WAITING = (*openmp.SETTINGS, "OMP_NUM_THREADS")
PROMPT = 32  # tokens
CONTEXT_BYTES = 512 << 20  # of a process on a GPU, beside what PyTorch reserves


def main(source: str, device: str, dtype: str, parent: int) -> None:
    """Load, warm up, and generate as often as the input says."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches children too; the parent decides
    die_with(parent)
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    model = labcore.load(source, device=device, dtype=dtype)
    prompt = random_prompt(model, min(PROMPT, model.config.max_position_embeddings // 2))
    for _ in islice(_tokens(model, prompt), 8):
        pass  # warms up
    _answer(out, _about(model))
    for line in sys.stdin:
        tokens, seconds = generate(model, prompt, float(line))
        _answer(out, {"tokens": tokens, "seconds": seconds})


def generate(model: Model, prompt: list[int], seconds: float) -> tuple[int, float]:
    """Greedy tokens, answer after answer, until the time is over: how many, and the seconds they took."""
    start, count, elapsed = time.perf_counter(), 0, 0.0
    tokens = _tokens(model, prompt)
    while elapsed < seconds:
        next(tokens)
        count, elapsed = count + 1, time.perf_counter() - start
    return count, elapsed


def _tokens(model: Model, prompt: list[int]) -> Iterator[object]:
    while True:  # an answer ends with the model's context
        yield from labcore.stream(model, prompt, max_new_tokens=256, ignore_eos=True)


def _about(model: Model) -> dict[str, Any]:
    """What the parent records. bytes: that one more such process would take of the device's memory."""
    on_gpu = model.device.type == "cuda"
    return {
        "model": model.name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "waiting": {name: os.environ.get(name) for name in WAITING},
        "bytes": torch.cuda.memory_reserved(model.device) + CONTEXT_BYTES if on_gpu else resident_bytes(),
    }


def _answer(out: TextIO, data: dict[str, Any]) -> None:
    print(json.dumps(data), file=out, flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
    except LabError as error:
        sys.exit(str(error))
