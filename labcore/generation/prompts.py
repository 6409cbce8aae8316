"""What a prompt may be (text, token ids, or a list of either) and how a batch of them is laid out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from labcore.config import ModelConfig
from labcore.errors import PromptError
from labcore.model import Model

OnePrompt: TypeAlias = str | Sequence[int] | Tensor
Prompt: TypeAlias = OnePrompt | Sequence[str] | Sequence[Sequence[int]]


@dataclass(frozen=True)
class PromptBatch:
    """Prompts padded on the left to one length. tokens: (B, p) int64; padding: (B,) positions of padding."""

    tokens: Tensor
    padding: Tensor
    lists: list[list[int]]

    @property
    def size(self) -> int:
        """How many sequences there are."""
        return self.tokens.shape[0]

    def singles(self) -> Iterator[PromptBatch]:
        """Each prompt as a batch of its own."""
        for tokens in self.lists:
            row = torch.tensor([tokens], device=self.tokens.device)
            yield PromptBatch(row, torch.zeros(1, dtype=torch.int64), [tokens])


def window_note(config: ModelConfig, context: int) -> str:
    """Why a context ends where it does, for a sentence that names its length; "" where no window ends it."""
    if config.sliding_window != context:
        return ""
    return f", as the model's attention window is {context} and this engine attends to all that it keeps"


def is_batch(prompt: Prompt) -> bool:
    """Whether this is a list of prompts rather than one prompt."""
    if isinstance(prompt, str):
        return False
    if isinstance(prompt, Tensor):
        return prompt.dim() == 2
    return bool(prompt) and not isinstance(prompt[0], int)


def encode_batch(model: Model, prompt: Prompt, endless: bool = False) -> PromptBatch:
    """Tokens of one prompt or of many. Raises PromptError for an empty, overlong or impossible one.

    endless: the cache goes on past the model's context, so that no prompt is too long.
    """
    many = list(prompt) if is_batch(prompt) else [prompt]
    lists = [_encode(model, one, f" {i}" if len(many) > 1 else "", endless) for i, one in enumerate(many)]  # type: ignore[arg-type]
    longest = max(len(tokens) for tokens in lists)
    padding = torch.tensor([longest - len(tokens) for tokens in lists])
    rows = [[0] * (longest - len(tokens)) + tokens for tokens in lists]
    return PromptBatch(torch.tensor(rows, device=model.device), padding, lists)


def _encode(model: Model, prompt: OnePrompt, which: str, endless: bool) -> list[int]:
    if isinstance(prompt, str):
        if not prompt:
            raise PromptError(f"Prompt{which} is empty; give at least one character or one token.")
        tokens = _tokenize(model, prompt)
    else:
        tokens = [int(token) for token in prompt]
    _validate(model, tokens, which, endless)
    return tokens


def _tokenize(model: Model, text: str) -> list[int]:
    if model.tokenizer is None:
        raise PromptError(f"Model {model.name!r} has no tokenizer; give token ids instead of text.")
    return model.tokenizer.encode(text, add_bos=model.tokenizer.adds_bos)


def _validate(model: Model, tokens: list[int], which: str, endless: bool) -> None:
    vocab, context = model.config.vocab_size, model.config.max_position_embeddings
    if not tokens:
        raise PromptError(f"Prompt{which} is empty; give at least one character or one token.")
    if len(tokens) >= context and not endless:
        raise PromptError(
            f"Prompt{which} is {len(tokens)} tokens and model {model.name!r} holds {context} in all"
            f"{window_note(model.config, context)}; shorten it to at most {context - 1}, so that one can be "
            "generated."
        )
    if wrong := [token for token in tokens if not 0 <= token < vocab]:
        raise PromptError(
            f"Prompt{which} holds token {wrong[0]}; model {model.name!r} knows tokens 0 to {vocab - 1}."
        )
