"""When an answer ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from labcore.errors import SamplingError
from labcore.model import Model


@dataclass(frozen=True)
class Stopping:
    """An answer ends at an end-of-sequence token, at a stop string, or after max_new_tokens.

    Raises SamplingError for fewer than one token or an empty stop string.
    """

    max_new_tokens: int = 64
    stop: str | Sequence[str] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.max_new_tokens, int) or self.max_new_tokens < 1:
            raise SamplingError(
                f"max_new_tokens is {self.max_new_tokens!r}; it must be a whole number of at least 1."
            )
        if any(not text for text in self.strings):
            raise SamplingError("A stop string is empty; it would end every answer before its first token.")

    @property
    def strings(self) -> tuple[str, ...]:
        """The stop strings, however many were given."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def eos_of(self, model: Model) -> frozenset[int]:
        """The tokens that end an answer of this model."""
        return frozenset() if self.ignore_eos else frozenset(model.config.eos_token_ids)

    def room(self, model: Model, prompt_length: int, endless: bool = False) -> int:
        """How many tokens can be generated before the model's context ends; endless: it does not."""
        if endless:
            return self.max_new_tokens
        return min(self.max_new_tokens, model.config.max_position_embeddings - prompt_length)
