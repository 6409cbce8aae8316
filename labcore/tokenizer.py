"""Text to tokens and back, over the `tokenizers` library; and decoding as a stream without broken letters."""

from __future__ import annotations

import codecs
import json
import os
import re
import reprlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from labcore.config import ModelConfig
from labcore.errors import CheckpointError, PromptError
from labcore.json_file import read_object
from labcore.tokenizer_file import explained, read_tokenizer

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_VISIBLE = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"})


_LAST_ID = 2**32 - 1  # the library holds ids as unsigned 32-bit numbers
LOOK_BACK = 1000  # tokens of a prompt that are looked at for where its text ends
_LONG = 1_000  # characters; the library's call for one text holds the interpreter's lock all the while
_NFC_MOST = 4  # characters that Unicode's composed form makes one of, at most
_NOT_ENCODED = (
    "The model's tokenizer cannot encode this text of {:,} characters ({{}}); send another text, or load the "
    "model with the tokenizer.json that belongs to it."
)
_NOT_DECODED = (
    "The model's tokenizer cannot decode these {:,} tokens ({{}}); load the model with the tokenizer.json "
    "that belongs to it."
)


def _byte_alphabet() -> dict[str, int]:
    """The byte behind each printable character of byte-level BPE (GPT-2's `bytes_to_unicode`, inverted)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_alphabet()


class Tokenizer:
    """One checkpoint's tokenizer. `adds_bos`: the model expects documents to begin with `bos_id`."""

    def __init__(
        self, library: tokenizers.Tokenizer, bos_id: int | None = None, adds_bos: bool = False
    ) -> None:
        self._library = library
        self.bos_id = bos_id
        self.adds_bos = adds_bos and bos_id is not None
        self.special_ids = frozenset(
            token for token, added in library.get_added_tokens_decoder().items() if added.special
        )
        # Its decoder alone: the whole of a large tokenizer takes a second to write and to read.
        decoder = library.decoder
        self.byte_level = _is_byte_level(decoder and json.loads(decoder.__getstate__()))

    @classmethod
    def from_file(cls, path: Path | str, config: ModelConfig | None = None) -> Tokenizer:
        """Read a tokenizer.json, and what tokenizer_config.json beside it says about the first token.

        config: its bos_token_id is used where tokenizer_config.json names none.
        Raises CheckpointError when the file is missing or no tokenizer.
        """
        path = Path(path)
        try:
            library = read_tokenizer(path, None if config is None else config.vocab_size)
        except FileNotFoundError:
            raise CheckpointError(
                f"There is no tokenizer file {path}; give the path of a tokenizer.json."
            ) from None
        library.no_truncation()
        library.no_padding()
        if getattr(library.model, "dropout", None):
            library.model.dropout = None  # of training: the same text would have other tokens each time
        settings = _settings(path.with_name("tokenizer_config.json"))
        bos_id = _bos_id(library, settings, config)
        adds = settings.get("add_bos_token")
        if not isinstance(adds, bool | None):
            raise CheckpointError(
                f"add_bos_token of tokenizer_config.json beside {path.name} is {reprlib.repr(adds)}; "
                "it must be true, false or null."
            )
        return cls(library, bos_id, _template_adds(library, bos_id) if adds is None else adds)

    @classmethod
    def from_folder(cls, folder: Path, config: ModelConfig | None = None) -> Tokenizer | None:
        """The tokenizer of a model folder, or None where it has no tokenizer.json."""
        path = folder / "tokenizer.json"
        return cls.from_file(path, config) if os.path.lexists(path) else None

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which `from_folder` reads."""
        self._library.save(str(folder / "tokenizer.json"))
        bos = None if self.bos_id is None else self.piece(self.bos_id)
        text = json.dumps({"bos_token": bos, "add_bos_token": self.adds_bos}, indent=2) + "\n"
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")

    @property
    def vocab_size(self) -> int:
        """How many tokens there are, special ones included (a model's embedding may be padded beyond)."""
        return self._library.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, add_bos: bool = False) -> list[int]:
        """Tokens of a text; add_bos puts the beginning-of-text token first, where there is one and the
        text does not begin with it.

        Other threads go on while a long text is encoded.
        """
        try:
            tokens = self._encoded(_whole(text))
        except BaseException as error:
            raise explained(error, PromptError, _NOT_ENCODED.format(len(text))) from None
        missing = add_bos and self.bos_id is not None and tokens[:1] != [self.bos_id]
        return [self.bos_id, *tokens] if missing else tokens  # type: ignore[list-item]

    def fewest_tokens(self, text: str) -> int:
        """A number that `encode` certainly reaches, without encoding: characters over the longest token's.

        0 where nobody can say, as a tokenizer may drop characters or make one token of any number of them.
        """
        longest, composes = self._bounds
        if longest is None:
            return 0
        length = len(_whole(text))
        if composes and not text.isascii():
            length = -(-length // _NFC_MOST)
        return -(-length // longest)

    @cached_property
    def _bounds(self) -> tuple[int | None, bool]:
        """Characters of the longest token, and whether characters are composed first. On first use, because
        the whole of a large tokenizer takes a second to write and to read."""
        settings = json.loads(self._library.to_str())
        return _longest_token(settings), "NFC" in _types(settings["normalizer"], "normalizers")

    def _encoded(self, text: str) -> list[int]:
        if len(text) < _LONG:
            return self._library.encode(text, add_special_tokens=False).ids
        # the call for many lets go of the interpreter's lock; `fast`: without offsets
        return self._library.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def decode(self, tokens: Iterable[int]) -> str:
        """Text of tokens. Special tokens, and ids that no token has, add nothing."""
        known = [token for token in tokens if 0 <= token <= _LAST_ID]
        try:
            return self._library.decode(known, skip_special_tokens=True)
        except BaseException as error:
            raise explained(error, CheckpointError, _NOT_DECODED.format(len(known))) from None

    def piece(self, token: int) -> str | None:
        """The vocabulary's own spelling of a token, or None for an id that no token has."""
        return self._library.id_to_token(token) if 0 <= token <= _LAST_ID else None

    def token_bytes(self, token: int) -> bytes:
        """What a byte-level token stands for: bytes that need not be whole characters."""
        piece = self.piece(token) or ""
        if all(character in _BYTES for character in piece):
            return bytes(_BYTES[character] for character in piece)
        return piece.encode()  # an added token is spelt in plain text

    def token_text(self, token: int) -> str:
        """One token made visible: spaces as ␣, line ends as ⏎, bytes that are no character as <0xE2>.

        Characters that do not show appear by number (<0x00>, <U+200D>), an id that no token has as <7>.
        """
        piece = self.piece(token)
        if piece is None:
            return f"<{token}>"
        if self.byte_level:
            text = self.token_bytes(token).decode("utf-8", errors="backslashreplace")
            return _show(re.sub(r"\\x([0-9a-f]{2})", lambda m: f"<0x{m[1].upper()}>", text))
        if _BYTE_TOKEN.fullmatch(piece) and int(piece[3:5], 16) < 128:
            piece = chr(int(piece[3:5], 16))
        return _show(piece.replace("▁", " "))

    def stream(self, prompt: Sequence[int] = ()) -> StreamDecoder:
        """A decoder that takes tokens one by one. prompt: the tokens before them."""
        return StreamDecoder(self, prompt)

    def continuation(self, prompt: Sequence[int], tokens: Iterable[int]) -> str:
        """What these tokens add to a prompt's text: after the prompt's, it is the text of both."""
        stream = self.stream(prompt)
        return "".join([*map(stream.push, tokens), stream.flush()])


class StreamDecoder:
    """Decode token by token behind a prompt. All that `push` and `flush` return, joined, is what the tokens
    add to the prompt's text; without a prompt, `tokenizer.decode` of all tokens.

    Only whole characters come out. Each push costs the same however long the text is: byte-level tokens go
    through an incremental UTF-8 decoder; others are decoded behind the one token before them, so that a
    leading space is kept, and byte tokens (<0xE2>) wait until their run ends, which decides what they spell.
    A character that the prompt begins and these tokens complete comes out whole.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._context: list[int] = []  # the last token whose text is out
        self._waiting: list[int] = []
        # The end of the prompt that is no whole character: the prompt's own text shows U+FFFD for it.
        self._unfinished: list[int] = []
        if tokenizer.byte_level:
            self._begin_bytes(prompt)
        else:
            self._begin_pieces(prompt)

    def push(self, token: int) -> str:
        """The text that this token completes: often a word, sometimes nothing yet."""
        if not self._has_text(token):
            return ""
        if self._tokenizer.byte_level:
            return self._without_prompt(self._utf8.decode(self._tokenizer.token_bytes(token)))
        self._waiting.append(token)
        return self._release() if self._byte_of(token) is None else ""

    def flush(self) -> str:
        """The end of the text: what was held back, an unfinished character as U+FFFD."""
        if self._tokenizer.byte_level:
            return self._without_prompt(self._utf8.decode(b"", final=True))
        return self._release()

    def _begin_bytes(self, prompt: Sequence[int]) -> None:
        """Whatever is unfinished begins at most three bytes back."""
        end = b""
        for token in reversed(prompt[-LOOK_BACK:]):
            if len(end) >= 3:
                break
            end = (self._tokenizer.token_bytes(token) if self._has_text(token) else b"") + end
        self._utf8.decode(end)
        self._unfinished = list(self._utf8.getstate()[0])

    def _begin_pieces(self, prompt: Sequence[int]) -> None:
        """The last token that is no byte is enough to be no beginning of a text."""
        run: list[int] = []
        for token in filter(self._has_text, reversed(prompt[-LOOK_BACK:])):
            if self._byte_of(token) is None:
                self._context = [token]
                break
            run.insert(0, token)
        cut = len(prompt) > LOOK_BACK and not self._context
        while cut and run and 0x80 <= (self._byte_of(run[0]) or 0) < 0xC0:
            del run[0]  # of a character that began before
        if _is_text(bytes(self._byte_of(token) or 0 for token in run)):
            self._context = self._context or run
        else:
            self._waiting, self._unfinished = [*run], run

    def _has_text(self, token: int) -> bool:
        return self._tokenizer.piece(token) is not None and token not in self._tokenizer.special_ids

    def _byte_of(self, token: int) -> int | None:
        """The byte that a token such as <0xE2> stands for; None for others."""
        piece = self._tokenizer.piece(token) or ""
        return int(piece[3:5], 16) if _BYTE_TOKEN.fullmatch(piece) else None

    def _without_prompt(self, text: str) -> str:
        """Without the prompt's unfinished character, where nothing has completed it."""
        if not (text and self._unfinished):
            return text
        self._unfinished = []
        return text.removeprefix("\ufffd")

    def _release(self) -> str:
        if not self._waiting:
            return ""
        known = self._tokenizer.decode(self._context + self._unfinished)
        text = self._tokenizer.decode(self._context + self._waiting)
        if self._unfinished and not text.startswith(known):  # it was completed
            known = self._tokenizer.decode(self._context)
        self._context, self._waiting, self._unfinished = self._waiting[-1:], [], []
        return text[len(known) :]


def _show(text: str) -> str:
    def number(character: str) -> str:
        code = ord(character)
        return f"<0x{code:02X}>" if code < 128 else f"<U+{code:04X}>"

    return "".join(c if c.isprintable() else number(c) for c in text.translate(_VISIBLE))


def _is_text(run: bytes) -> bool:
    """Whether these bytes are whole characters."""
    try:
        run.decode()
    except UnicodeDecodeError:
        return False
    return True


def _whole(text: str) -> str:
    """Text with halves of surrogate pairs (they come from JSON) joined, or replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _is_byte_level(decoder: dict[str, Any] | None) -> bool:
    if decoder is None:
        return False
    if decoder["type"] == "Sequence":
        return [inner["type"] for inner in decoder["decoders"]] == ["ByteLevel"]
    return bool(decoder["type"] == "ByteLevel")


def _types(part: dict[str, Any] | None, inner: str) -> list[str]:
    """The types of a normalizer or pre-tokenizer, a sequence's one by one."""
    return [one["type"] for one in _flat(part, inner)]


def _flat(part: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    """The steps of a sequence, and of sequences in it."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    return [one for each in part[inner] for one in _flat(each, inner)]


def _longest_token(settings: dict[str, Any]) -> int | None:
    """Characters that one token stands for at most; None: any number, or some may stand for none.

    settings: a tokenizer.json. Only what is known to keep every character is trusted: BPE that knows every
    byte, behind steps that remove nothing, without added tokens that take the spaces around them along.
    """
    model, added = settings["model"], settings["added_tokens"]
    if model["type"] != "BPE" or settings["truncation"]:
        return None
    if model["continuing_subword_prefix"] or model["end_of_word_suffix"]:
        return None
    if any(token["lstrip"] or token["rstrip"] for token in added):
        return None
    normalizers = _flat(settings["normalizer"], "normalizers")
    splitters = _flat(settings["pre_tokenizer"], "pretokenizers")
    if not all(map(_normalizes_all, normalizers)) or not all(map(_splits_all, splitters)):
        return None
    byte_level = any(one["type"] == "ByteLevel" for one in splitters)
    every = _BYTES if byte_level else [f"<0x{byte:02X}>" for byte in range(256)]
    if not (byte_level or model["byte_fallback"]) or any(byte not in model["vocab"] for byte in every):
        return None
    before = sum(len(one["prepend"]) for one in normalizers if one["type"] == "Prepend")
    return max(map(len, [*model["vocab"], *(token["content"] for token in added)])) + before


def _normalizes_all(one: dict[str, Any]) -> bool:
    """Whether no character is lost, NFC's compositions aside."""
    if one["type"] == "Replace":
        return len(one["content"]) == len(one["pattern"].get("String", ""))
    return one["type"] in ("NFC", "Prepend")


def _splits_all(one: dict[str, Any]) -> bool:
    """Whether a split keeps what it splits at."""
    if one["type"] in ("Split", "Punctuation"):
        return bool(one["behavior"] != "Removed")
    return one["type"] in ("ByteLevel", "Metaspace", "Digits")


def _settings(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except FileNotFoundError:
        return {}


def _bos_id(
    library: tokenizers.Tokenizer, settings: dict[str, Any], config: ModelConfig | None
) -> int | None:
    named = settings.get("bos_token")
    content = named.get("content") if isinstance(named, dict) else named
    if not isinstance(content, str | None):
        raise CheckpointError(
            f"bos_token of tokenizer_config.json is {reprlib.repr(named)}; it must be a token's text or null."
        )
    token = library.token_to_id(content) if isinstance(content, str) else None
    return token if token is not None or config is None else config.bos_token_id


def _template_adds(library: tokenizers.Tokenizer, bos_id: int | None) -> bool:
    """Whether the tokenizer's own template puts the first token there, where no setting says so."""
    try:
        return bos_id is not None and library.encode("", add_special_tokens=True).ids[:1] == [bos_id]
    except BaseException as error:
        raise explained(error, CheckpointError, _NOT_ENCODED.format(0)) from None
