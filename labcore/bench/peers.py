"""The engines we measure ourselves against, each given the very same weights and prompt.

A peer is imported only when it is named, and never needed by labcore itself.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

import labcore
from labcore.errors import LabError
from labcore.generation.steps import StepKind
from labcore.model import Model, save_checkpoint


@dataclass(frozen=True)
class Run:
    """One whole greedy generation: the new tokens, its seconds, and those to the first token if known."""

    tokens: list[int]
    seconds: float
    ttft_s: float | None = None

    @property
    def tpot_s(self) -> float | None:
        """Seconds per token after the first, or None where the first was not timed apart."""
        if self.ttft_s is None or len(self.tokens) < 2:
            return None
        return (self.seconds - self.ttft_s) / (len(self.tokens) - 1)


Contestant = Callable[[], Run]


def ours(model: Model, prompt: list[int], new_tokens: int) -> Contestant:
    """labcore.generate, greedy, exactly new_tokens long; on a GPU its decode steps are graphs."""
    step: StepKind = "graph" if model.device.type == "cuda" else "eager"

    def run() -> Run:
        start = time.perf_counter()
        out = labcore.generate(model, prompt, max_new_tokens=new_tokens, ignore_eos=True, step=step)
        return Run(out.tokens, time.perf_counter() - start, out.ttft_s)

    return run


def transformers(model: Model, prompt: list[int], new_tokens: int) -> Contestant:
    """transformers' generate on the same checkpoint, greedy, same length, its default cache and attention."""
    peer = as_transformers(model)
    ids = torch.tensor([prompt], device=model.device)
    settings = {
        "max_new_tokens": new_tokens,
        "min_new_tokens": new_tokens,
        "do_sample": False,
        "use_cache": True,
    }

    def run() -> Run:
        start = time.perf_counter()
        with torch.inference_mode():
            out = peer.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **settings)
        tokens = out[0, len(prompt) :].tolist()  # waits for the device
        return Run(tokens, time.perf_counter() - start)

    return run


PEERS: dict[str, Callable[[Model, list[int], int], Contestant]] = {"transformers": transformers}


def peer(name: str, model: Model, prompt: list[int], new_tokens: int) -> Contestant:
    """A named peer, ready to run. Raises LabError when it is unknown or not installed."""
    if name not in PEERS:
        raise LabError(f"There is no peer {name!r} to measure against; choose from {', '.join(PEERS)}.")
    try:
        version(name)
    except PackageNotFoundError:
        raise LabError(
            f"{name} is not installed; pip install {name}, or leave it out of --against."
        ) from None
    return PEERS[name](model, prompt, new_tokens)


def as_transformers(model: Model) -> Any:
    """The same weights in transformers, by way of a checkpoint on disk."""
    import transformers as library

    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(model.transformer, model.config, folder, dtype=model.dtype)
        loaded = library.AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype)
    loaded.generation_config.eos_token_id = None  # as ignore_eos: every run has the same length
    return loaded.to(model.device).eval()
