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
from labcore.perf.timing import synchronize


@dataclass(frozen=True)
class Run:
    """One whole greedy generation of a batch: each sequence's new tokens, the seconds, and those to the first
    token if known."""

    tokens: list[list[int]]
    seconds: float
    ttft_s: float | None = None

    @property
    def count(self) -> int:
        """New tokens of all sequences."""
        return sum(map(len, self.tokens))

    @property
    def tpot_s(self) -> float | None:
        """Seconds per token after the first, or None where the first was not timed apart."""
        if self.ttft_s is None or len(self.tokens[0]) < 2:
            return None
        return (self.seconds - self.ttft_s) / (len(self.tokens[0]) - 1)


Contestant = Callable[[], Run]
Prompts = list[list[int]]  # of one length


def ours(model: Model, prompts: Prompts, new_tokens: int) -> Contestant:
    """labcore.generate, greedy, exactly new_tokens long; on a GPU its decode steps are graphs."""
    step: StepKind = "graph" if model.device.type == "cuda" else "eager"

    def run() -> Run:
        start = time.perf_counter()
        outs = labcore.generate(model, prompts, max_new_tokens=new_tokens, ignore_eos=True, step=step)
        return Run([out.tokens for out in outs], time.perf_counter() - start, outs[0].ttft_s)

    return run


def transformers(model: Model, prompts: Prompts, new_tokens: int, **more: Any) -> Contestant:
    """transformers' generate on the same checkpoint, greedy, same length, its default cache and attention."""
    peer = as_transformers(model)
    ids = torch.tensor(prompts, device=model.device)
    settings: dict[str, Any] = {
        "max_new_tokens": new_tokens,
        "min_new_tokens": new_tokens,
        "do_sample": False,
        "use_cache": True,
        "attention_mask": torch.ones_like(ids),
        "pad_token_id": 0,
        **more,
    }

    def run() -> Run:
        first = _FirstToken(model.device)
        start = time.perf_counter()
        with torch.inference_mode():
            out = peer.generate(ids, stopping_criteria=[first], **settings)
        tokens = out[:, ids.shape[1] :].tolist()  # waits for the device
        return Run(tokens, time.perf_counter() - start, first.at - start)

    return run


class _FirstToken:
    """Stops nothing: it is asked after each token, and notes when the first one was there."""

    def __init__(self, device: torch.device) -> None:
        self._device, self.at = device, 0.0

    def __call__(self, tokens: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        if not self.at:
            synchronize(self._device)
            self.at = time.perf_counter()
        return torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)


def transformers_static(model: Model, prompts: Prompts, new_tokens: int) -> Contestant:
    """The same with a static cache, for which transformers compiles its decode steps on a GPU."""
    return transformers(model, prompts, new_tokens, cache_implementation="static")


PEERS: dict[str, Callable[[Model, Prompts, int], Contestant]] = {
    "transformers": transformers,
    "transformers-static": transformers_static,
}


def peer(name: str, model: Model, prompts: Prompts, new_tokens: int) -> Contestant:
    """A named peer, ready to run. Raises LabError when it is unknown or not installed."""
    if name not in PEERS:
        raise LabError(f"There is no peer {name!r} to measure against; choose from {', '.join(PEERS)}.")
    package = name.partition("-")[0]
    try:
        version(package)
    except PackageNotFoundError:
        raise LabError(
            f"{package} is not installed; pip install {package}, or leave {name} out of --against."
        ) from None
    return PEERS[name](model, prompts, new_tokens)


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
