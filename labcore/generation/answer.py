"""One sequence's answer while it grows: its tokens, its visible text, and whether it has ended."""

from __future__ import annotations

from labcore.errors import NotFinite
from labcore.generation.output import FinishReason, Output
from labcore.generation.sampling import NO_TOKEN
from labcore.generation.stopping import Stopping
from labcore.generation.text import TextStream
from labcore.model import Model


def not_finite(model: Model, given: int) -> NotFinite:
    """What to raise where logits are no numbers, behind so many tokens of the answer."""
    dtype = str(model.dtype).removeprefix("torch.")
    mend = (
        "float16 reaches 65,504 only: load the model with dtype='bfloat16' or 'float32'"
        if dtype == "float16"
        else "its weights, or this prompt, lead beyond what numbers can hold: fetch the checkpoint again"
    )
    return NotFinite(
        f"The logits of {model.name!r} in {dtype} are NaN or infinite behind {given} tokens of the answer, "
        f"so that no token can be chosen; {mend}."
    )


class Answer:
    """Takes tokens until one ends it; `output` is filled as they come."""

    def __init__(self, model: Model, prompt: list[int], stopping: Stopping) -> None:
        self.output = Output(prompt_tokens=prompt)
        self.ended: FinishReason | None = None
        self._model = model
        self._text = TextStream(model.tokenizer, stopping.strings, prompt)
        self._eos = stopping.eos_of(model)

    def push(self, token: int, seconds: float, last: bool) -> str:
        """Take a token; returns the text it made visible. `last`: no more tokens will come.

        Raises NotFinite for NO_TOKEN, and what the tokenizer raises that cannot decode one.
        """
        if token == NO_TOKEN:
            raise not_finite(self._model, len(self.output.tokens))
        self.output.tokens.append(token)
        self.output.step_seconds.append(seconds)
        shown = "" if token in self._eos else self._text.push(token)
        self.ended = self._reason(token, last)
        if self.ended:
            shown += self._text.flush()
            # what was held back may have been the rest of a stop string after all
            self.output.finish_reason = "stop" if self._text.stopped else self.ended
            self.output.text = self._text.text
        return shown

    def _reason(self, token: int, last: bool) -> FinishReason | None:
        if token in self._eos:
            return "eos"
        if self._text.stopped:
            return "stop"
        return "length" if last else None
