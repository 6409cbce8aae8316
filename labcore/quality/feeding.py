"""Texts through a cache as decoding would bring them: a first part at once, the rest token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from labcore.cache import CacheChoice, KVCache, create
from labcore.errors import PromptError
from labcore.model import Model

BATCH = 16  # rows that the native decode path takes


def encode(model: Model, text: str) -> list[int]:
    """Token ids with the beginning-of-text token. Raises PromptError for a model without a tokenizer."""
    if model.tokenizer is None:
        raise PromptError(
            f"Model {model.name!r} has no tokenizer; the quality of a cache is measured on text."
        )
    return model.tokenizer.encode(text, add_bos=True)


def batches(rows: Sequence[list[int]]) -> Iterator[list[int]]:
    """Indices of rows of similar length, BATCH at a time."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    for start in range(0, len(order), BATCH):
        yield order[start : start + BATCH]


class Feed:
    """One batch of rows, left-padded to one length, on its way through a new cache."""

    def __init__(self, model: Model, rows: Sequence[list[int]], cache: CacheChoice, extra: int = 0) -> None:
        """extra: positions that will be fed behind the rows."""
        longest = max(map(len, rows))
        self.model = model
        self.padding = torch.tensor([longest - len(row) for row in rows])
        padded = [[0] * (longest - len(row)) + row for row in rows]
        self.tokens = torch.tensor(padded, device=model.device)
        self.cache: KVCache = create(
            cache, model.config, batch_size=len(rows), capacity=longest + extra, device=model.device,
            dtype=model.dtype, padding=self.padding,
        )  # fmt: skip

    def through(self, first: int) -> Iterator[tuple[int, Tensor]]:
        """Feed `first` positions at once, then one by one: (positions fed, logits of the last (B, vocab))."""
        total = self.tokens.shape[1]
        for end in range(first, total + 1):
            yield (
                end,
                self.step(self.tokens[:, self.cache.length : end] if self._keeps else self.tokens[:, :end]),
            )

    @property
    def _keeps(self) -> bool:
        return self.cache.kind != "none"

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """Feed (B, n) tokens; logits of the last, (B, vocab) fp32."""
        out: Tensor = self.model.transformer(tokens, self.cache, logits_to_keep=1)
        return out[:, -1].float()
