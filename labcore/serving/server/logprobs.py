"""Tokens by name: how logprobs are told in OpenAI's two formats."""

from __future__ import annotations

import re
from collections.abc import Sequence

from labcore.serving.requests import TokenLogprob
from labcore.serving.server.answer_types import ChatLogprob, ChatLogprobs, CompletionLogprobs, TopLogprob
from labcore.tokenizer import StreamDecoder, Tokenizer

LEAST = -9999.0  # JSON has no infinity; OpenAI's own floor
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Speller:
    """The names of tokens of one answer to a prompt, in their order, and where in its text they begin."""

    def __init__(self, tokenizer: Tokenizer | None, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._decoder: StreamDecoder | None = tokenizer.stream(prompt) if tokenizer else None
        self._offset = 0

    def completion(self, logprobs: Sequence[TokenLogprob]) -> CompletionLogprobs:
        """The format of /v1/completions. The chosen token is among the top ones, whether it was or not."""
        told = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        for one in logprobs:
            name = self._name(one.token)
            told.tokens.append(name)
            told.token_logprobs.append(_finite(one.logprob))
            top = {self._name(token): _finite(logprob) for token, logprob in one.top}
            told.top_logprobs.append({**top, name: _finite(one.logprob)})
            told.text_offset.append(self._offset)
            self._offset += len(self._decoder.push(one.token)) if self._decoder else 0
        return told

    def chat(self, logprobs: Sequence[TokenLogprob]) -> ChatLogprobs:
        """The format of /v1/chat/completions."""
        return ChatLogprobs(
            content=[
                ChatLogprob(
                    **self._entry(one.token, one.logprob).model_dump(),
                    top_logprobs=[self._entry(token, logprob) for token, logprob in one.top],
                )
                for one in logprobs
            ]
        )

    def _entry(self, token: int, logprob: float) -> TopLogprob:
        spelt = self._bytes(token)
        name = f"token_id:{token}" if spelt is None else spelt.decode(errors="replace")
        return TopLogprob(token=name, logprob=_finite(logprob), bytes=None if spelt is None else list(spelt))

    def _name(self, token: int) -> str:
        """Text; a byte's own token, and bytes that are no whole character, as bytes:\\xe2. So no two tokens
        share a name, such as "A" and <0x41>."""
        spelt = self._bytes(token)
        if spelt is None:
            return f"token_id:{token}"
        try:
            name = spelt.decode()
        except UnicodeDecodeError:
            name = None
        if name is None or self._is_byte(token):
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelt)
        return name

    def _is_byte(self, token: int) -> bool:
        """Whether it stands for one byte that the vocabulary lacks, as SentencePiece's <0x41>."""
        assert self._tokenizer is not None
        piece = self._tokenizer.piece(token) or ""
        special = self._tokenizer.byte_level or token in self._tokenizer.special_ids
        return not special and _BYTE.fullmatch(piece) is not None

    def _bytes(self, token: int) -> bytes | None:
        """What a token stands for; None where nobody can say."""
        if self._tokenizer is None or (piece := self._tokenizer.piece(token)) is None:
            return None
        if token in self._tokenizer.special_ids:
            return piece.encode()
        if self._tokenizer.byte_level:
            return self._tokenizer.token_bytes(token)
        if found := _BYTE.fullmatch(piece):
            return bytes([int(found[1], 16)])
        return piece.replace("▁", " ").encode()


def _finite(logprob: float) -> float:
    return max(logprob, LEAST)
