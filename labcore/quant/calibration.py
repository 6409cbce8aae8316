"""What each linear layer's inputs look like, gathered one Transformer layer at a time.

Texts go through the embedding once; then each layer runs on what the layer before, already quantized, gave
out. So a method makes up for the errors before it too, and memory holds one layer's statistics and the
hidden states of the calibration texts, however deep the model is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from labcore import kernels
from labcore.catalog import data_dir
from labcore.errors import ConfigError
from labcore.quant.gptq import Hessian

MIN_TOKENS = 128
RANDOM_TEXTS, RANDOM_LENGTH = 4, 256
SAMPLE = 2048  # inputs of a layer that are kept as they are


class Inputs:
    """Statistics of one layer's inputs: largest and mean magnitude by column, a sample, a Hessian."""

    def __init__(self, columns: int, total: int, device: torch.device, hessian: bool) -> None:
        self.absmax = torch.zeros(columns, device=device, dtype=torch.float32)
        self._sum, self._count = torch.zeros_like(self.absmax), 0
        self._every = max(1, total // SAMPLE)
        self._rows: list[Tensor] = []
        self.hessian = Hessian(columns, device) if hessian else None

    def add(self, x: Tensor) -> None:
        """x: (..., columns)."""
        flat = x.detach().reshape(-1, x.shape[-1]).float()
        torch.maximum(self.absmax, flat.abs().amax(0), out=self.absmax)
        self._sum += flat.abs().sum(0)
        self._rows.append(flat[-self._count % self._every :: self._every].clone())
        self._count += len(flat)
        if self.hessian is not None:
            self.hessian.add(flat)

    @property
    def sample(self) -> Tensor:
        """(tokens, columns): every so-many-th input."""
        return torch.cat(self._rows)

    @property
    def mean_abs(self) -> Tensor:
        """(columns,)."""
        return self._sum / max(1, self._count)


class Causal:
    """What a Block needs of a cache, for whole texts: plain causal attention, nothing kept."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, h, n, d) -> (B, h, n, d)."""
        return kernels.attention(q, k, v, causal=True)


def calibration_tokens(
    model: Any, calibration: Sequence[str] | Sequence[Sequence[int]] | None
) -> list[list[int]]:
    """Token ids of the texts that methods look at; default: the embedded model's own held-in stories.

    Raises ConfigError for none, for fewer than 128 tokens, and where there is no default.
    """
    texts: Sequence[Any] = _default(model) if calibration is None else calibration
    if isinstance(texts, str):
        texts = [texts]
    rows = [_encoded(model, text) for text in texts]
    limit = model.config.max_position_embeddings
    rows = [row[:limit] for row in rows if len(row) > 1]
    total = sum(map(len, rows))
    if total < MIN_TOKENS:
        raise ConfigError(
            f"The calibration set holds {total} tokens in {len(rows)} texts; give at least {MIN_TOKENS} "
            "tokens of text like that the model will read."
        )
    return rows


def _encoded(model: Any, text: Any) -> list[int]:
    if isinstance(text, str):
        if model.tokenizer is None:
            raise ConfigError(f"Model {model.name!r} has no tokenizer; give calibration texts as token ids.")
        return list(model.tokenizer.encode(text, add_bos=True))
    ids = [int(token) for token in text]
    if wrong := [token for token in ids if not 0 <= token < model.config.vocab_size]:
        raise ConfigError(
            f"Calibration token {wrong[0]} does not exist; {model.name!r} has 0 to "
            f"{model.config.vocab_size - 1}."
        )
    return ids


def _default(model: Any) -> list[Any]:
    if model.random_weights:
        generator = torch.Generator().manual_seed(0)
        length = min(RANDOM_LENGTH, model.config.max_position_embeddings)
        return torch.randint(model.config.vocab_size, (RANDOM_TEXTS, length), generator=generator).tolist()
    if not model.name.startswith("story"):
        raise ConfigError(
            f"There are no calibration texts for {model.name!r}; pass some, like those that it will read: "
            "quantize(model, recipe, calibration=[text, …])."
        )
    return list(story_texts())


def story_texts(count: int | None = None) -> list[str]:
    """Held-in stories of the embedded model, which methods look at; the first few, or all."""
    path = data_dir() / "story" / "calibration.json"
    texts: list[str] = json.loads(path.read_text(encoding="utf-8"))
    return texts[:count]


@torch.inference_mode()
def layer_by_layer(
    transformer: Any, rows: Sequence[Sequence[int]], *, hessians: bool
) -> Iterator[tuple[int, dict[str, Inputs]]]:
    """For each layer: its number and the inputs of its linear layers by name. What the caller then puts in
    the linear layers' place is what the next layer's inputs come through."""
    device, total = transformer.norm.weight.device, sum(map(len, rows))
    states = [transformer.embed_tokens(torch.tensor([list(row)], device=device)) for row in rows]
    turns = [transformer.rope(torch.arange(len(row), device=device)[None], states[0].dtype) for row in rows]
    for number, block in enumerate(transformer.layers):
        with _watched(block, total, hessians) as found:
            for x, (cos, sin) in zip(states, turns, strict=True):
                block(x, cos, sin, Causal())
        yield number, found
        states = [block(x, cos, sin, Causal()) for x, (cos, sin) in zip(states, turns, strict=True)]


@contextmanager
def _watched(block: nn.Module, total: int, hessians: bool) -> Iterator[dict[str, Inputs]]:
    """Inputs of the block's linear layers, gathered while it runs."""
    linears = {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}
    found = {
        name: Inputs(linear.in_features, total, linear.weight.device, hessians)
        for name, linear in linears.items()
    }
    hooks = [
        linear.register_forward_pre_hook(lambda _, inputs, name=name: found[name].add(inputs[0]))
        for name, linear in linears.items()
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
