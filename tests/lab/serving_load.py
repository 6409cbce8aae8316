"""What lesson 8's tests share: a clock that ticks when read, a model with varied answers, requests."""

from __future__ import annotations

import torch

from labcore.generation.stopping import Stopping
from labcore.lab.serving_play import Watch
from labcore.model import Model
from labcore.serving import Request
from tests.lab.conftest import tiny_model

TICK = 1e-3


class Ticking(Watch):
    """Every reading is a millisecond later; sleeping takes what it takes."""

    def restart(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += TICK
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def busy_model() -> Model:
    """A tiny model whose greedy answers are not one token over and over."""
    model = tiny_model()
    stream = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.transformer.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.4, generator=stream)
    return model


def request(id: str, prompt: int, answer: int, at: float = 0.0) -> Request:
    tokens = tuple((7 * index + len(id)) % 64 for index in range(prompt))
    return Request(id, tokens, stopping=Stopping(answer, ignore_eos=True), arrival_s=at)


def some(n: int = 10, gap: float = 0.02) -> list[Request]:
    return [request(f"r{i}", 3 + i % 5, 1 + (5 * i) % 13, i * gap) for i in range(n)]
