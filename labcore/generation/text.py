"""From tokens to text that can be shown: whole characters, and nothing a stop string may swallow."""

from __future__ import annotations

from collections.abc import Sequence

from labcore.errors import SamplingError
from labcore.tokenizer import StreamDecoder, Tokenizer


class TextStream:
    """The text of one answer as it grows: what its tokens add to the text of the prompt's tokens.

    Text that might be the beginning of a stop string is held back until it is clear that it is not; the
    stop string itself is never shown.
    """

    def __init__(
        self, tokenizer: Tokenizer | None, stop: Sequence[str] = (), prompt: Sequence[int] = ()
    ) -> None:
        if stop and tokenizer is None:
            raise SamplingError(
                "Stop strings need a tokenizer and this model has none; use max_new_tokens instead."
            )
        self.stop = tuple(stop)
        self.stopped = False
        self.text = ""
        self._decoder: StreamDecoder | None = tokenizer.stream(prompt) if tokenizer else None
        self._held = ""

    def push(self, token: int) -> str:
        """Add a token; returns the text that can now be shown."""
        return self._release(self._decoder.push(token) if self._decoder else "")

    def flush(self) -> str:
        """The answer is over: show what was held back."""
        if self.stopped or self._decoder is None:
            return ""
        shown = self._release(self._decoder.flush())
        rest, self._held = ("", "") if self.stopped else (self._held, "")
        self.text += rest
        return shown + rest

    def _release(self, new: str) -> str:
        self._held += new
        hits = [at for at in (self._held.find(text) for text in self.stop) if at >= 0]
        if hits:
            self.stopped = True
            ready, self._held = self._held[: min(hits)], ""
        else:
            keep = max((_overlap(self._held, text) for text in self.stop), default=0)
            cut = len(self._held) - keep
            ready, self._held = self._held[:cut], self._held[cut:]
        self.text += ready
        return ready


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, the whole of it excluded."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
