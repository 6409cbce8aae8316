from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers

from labcore.tokenizer import LOOK_BACK, Tokenizer
from tests.spellings import CORPUS, TOKENIZERS, byte_level

NAMES = list(TOKENIZERS)


def streamed(tokenizer: Tokenizer, tokens: list[int], prompt: Sequence[int] = ()) -> list[str]:
    stream = tokenizer.stream(prompt)
    return [*(stream.push(token) for token in tokens), stream.flush()]


@given(st.sampled_from(NAMES), st.lists(st.integers(0, 330), max_size=40))
@settings(max_examples=400)
def test_streaming_any_tokens_gives_what_decoding_all_gives(name: str, tokens: list[int]) -> None:
    tokenizer = TOKENIZERS[name]
    assert "".join(streamed(tokenizer, tokens)) == tokenizer.decode(tokens)


@given(
    st.sampled_from(NAMES),
    st.lists(st.integers(0, 330), max_size=9),
    st.lists(st.integers(0, 330), max_size=9),
)
@settings(max_examples=600)
def test_behind_a_prompt_a_stream_is_what_the_tokens_add(
    name: str, prompt: list[int], tokens: list[int]
) -> None:
    tokenizer = TOKENIZERS[name]
    added = "".join(streamed(tokenizer, tokens, prompt))
    assert added == tokenizer.continuation(prompt, tokens)
    before, both = tokenizer.decode(prompt), tokenizer.decode(prompt + tokens)
    if both.startswith(before):
        assert before + added == both
    elif name == "byte_level":  # the prompt's last character was completed
        assert before.removesuffix("\ufffd") + added == both
    else:  # the prompt's bytes and these are one run, which is spelt otherwise as a whole
        assert both.endswith(added)


@given(
    st.sampled_from(["byte_level", "byte_fallback"]),
    st.text(max_size=30) | st.text("the cat s🙂é語\n", max_size=40),
)
@settings(max_examples=300)
def test_streaming_a_text_gives_the_text_back_in_whole_characters(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    tokens = tokenizer.encode(text)
    pieces = streamed(tokenizer, tokens)
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


# Long texts


def _pieces(name: str) -> list[str]:
    """Texts that make the fewest tokens: each is one token, the longest of its tokenizer among them."""
    tokenizer = TOKENIZERS[name]
    return [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]


@pytest.mark.parametrize("name", NAMES)
def test_a_text_never_has_fewer_tokens_than_promised(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    for text in [
        *(piece * 20 for piece in _pieces(name)),
        *CORPUS,
        " " * 99,
        "e\u0301" * 50,
        "\ud83d\ude00" * 9,
    ]:
        assert tokenizer.fewest_tokens(text) <= len(tokenizer.encode(text))
    assert (tokenizer.fewest_tokens("a" * 1000) > 0) == name.startswith("byte")  # others drop what they lack


@given(text=st.text(max_size=60))
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("name", NAMES)
def test_nor_has_any_text(name: str, text: str) -> None:
    assert TOKENIZERS[name].fewest_tokens(text) <= len(TOKENIZERS[name].encode(text))


def test_composed_characters_are_counted_as_the_four_that_they_may_be_of() -> None:
    library = byte_level()
    library.normalizer = normalizers.NFC()
    plain, composing = TOKENIZERS["byte_level"], Tokenizer(library)
    text = "\u03b1\u0313\u0300\u0345" * 100  # one character each, once composed
    assert 0 < composing.fewest_tokens(text) <= len(composing.encode(text))
    assert composing.fewest_tokens(text) <= plain.fewest_tokens(text) / 4 + 1
    assert composing.fewest_tokens("a" * 100) == plain.fewest_tokens("a" * 100)


def _stripping(library: tokenizers.Tokenizer) -> None:
    library.normalizer = normalizers.Strip()


def _removing(library: tokenizers.Tokenizer) -> None:
    library.normalizer = normalizers.Replace("aa", "a")


def _by_words(library: tokenizers.Tokenizer) -> None:
    library.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), library.pre_tokenizer])


def _at_commas(library: tokenizers.Tokenizer) -> None:
    split = pre_tokenizers.Split(",", "removed")
    library.pre_tokenizer = pre_tokenizers.Sequence([split, library.pre_tokenizer])


def _with_spaces(library: tokenizers.Tokenizer) -> None:
    library.add_special_tokens([AddedToken("<mask>", lstrip=True)])


def _without_bytes(library: tokenizers.Tokenizer) -> None:
    library.model = models.BPE({"a": 0, "b": 1}, [])


def _by_pieces(library: tokenizers.Tokenizer) -> None:
    library.model = models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0, byte_fallback=False)


@pytest.mark.parametrize(
    "change", [_stripping, _removing, _by_words, _at_commas, _with_spaces, _without_bytes, _by_pieces]
)
def test_nothing_is_promised_where_characters_may_get_lost(change: Callable[[Any], None]) -> None:
    library = byte_level()
    change(library)
    assert Tokenizer(library).fewest_tokens("a" * 1000) == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_long_text_has_the_tokens_of_a_short_one(name: str) -> None:
    text = "".join(CORPUS) * 60
    assert len(text) > 4_000
    library = TOKENIZERS[name]._library
    assert TOKENIZERS[name].encode(text) == library.encode(text, add_special_tokens=False).ids


def test_other_threads_go_on_while_a_long_text_is_encoded() -> None:
    counted, done = [0], threading.Event()

    def count() -> None:
        while not done.is_set():
            counted[0] += 1
            time.sleep(0)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        for _ in range(50):  # a busy machine may not run the thread during one
            before = counted[0]
            TOKENIZERS["byte_level"].encode("the cat sat on " * 5_000)
            if counted[0] > before + 10:
                return
    finally:
        done.set()
        thread.join()
    raise AssertionError("the other thread stood still")


def test_halves_of_surrogate_pairs_are_joined_or_replaced() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    assert tokenizer.decode(tokenizer.encode("cat\ud83d\ude42!")) == "cat🙂!"
    assert tokenizer.decode(tokenizer.encode("cat\ud83d!")) == "cat\ufffd!"


def test_a_split_emoji_is_held_until_whole() -> None:
    tokenizer = TOKENIZERS["byte_fallback"]
    tokens = [tokenizer.encode("t")[-1], *(3 + byte for byte in "🙂".encode()), tokenizer.encode("t")[-1]]
    assert streamed(tokenizer, tokens) == ["t", "", "", "", "", "🙂t", ""]
    bytewise = TOKENIZERS["byte_level"]
    tokens = bytewise.encode("ü")
    assert len(tokens) == 2
    assert streamed(bytewise, tokens) == ["", "ü", ""]
    assert streamed(bytewise, tokens[:1]) == ["", "\ufffd"]  # a text that ends within a character


def test_a_leading_space_is_not_lost_after_the_first_token() -> None:
    for name, piece in (("byte_fallback", "▁the"), ("metaspace", "▁the"), ("byte_level", "Ġthe")):
        tokenizer = TOKENIZERS[name]
        the = next(token for token in range(tokenizer.vocab_size) if tokenizer.piece(token) == piece)
        first = " the" if name == "byte_level" else "the"
        assert streamed(tokenizer, [the] * 3) == [first, " the", " the", ""]


@pytest.mark.parametrize(
    ("name", "prompt", "pieces", "added"),
    [
        ("byte_fallback", "the cat", ["▁the"], [" the", ""]),
        ("byte_fallback", "the cat\n", ["▁the"], [" the", ""]),
        ("byte_fallback", "the cat", ["</s>", "▁the", "</s>", "▁the"], ["", " the", "", " the", ""]),
        ("byte_fallback", "the cat", ["t", "▁the"], ["t", " the", ""]),
        ("byte_fallback", "é語", ["▁the"], [" the", ""]),
        ("byte_fallback", "the", ["<0xE8>", "<0xAA>", "<0x9E>", "▁s"], ["", "", "", "語 s", ""]),
        ("byte_fallback", "the", ["<0xE8>", "<0xAA>"], ["", "", "\ufffd\ufffd"]),
        ("byte_fallback", "the", [], [""]),
        ("byte_fallback", "", ["▁the", "▁the"], ["the", " the", ""]),
        ("metaspace", "the", ["▁the"], [" the", ""]),
        ("metaspace first", "the", ["▁cat", "▁the"], [" cat", " the", ""]),
        ("metaspace never", "", ["▁the"], [" the", ""]),
        ("words", "the", ["cat", "the"], [" cat", " the", ""]),
        ("byte_level", "the", ["Ġthe"], [" the", ""]),
    ],
)
def test_a_leading_space_behind_a_prompt_is_not_lost(
    name: str, prompt: str, pieces: list[str], added: list[str]
) -> None:
    tokenizer = TOKENIZERS[name]
    tokens = [tokenizer._library.token_to_id(piece) for piece in pieces]
    known = tokenizer.encode(prompt)
    assert streamed(tokenizer, tokens, known) == added
    assert streamed(tokenizer, tokens, [*known, tokenizer._library.token_to_id("<unk>") or 0]) == added


@pytest.mark.parametrize("name", NAMES)
def test_a_long_prompt_is_not_read_whole(name: str) -> None:
    """Bytes or special tokens without end: what begins before them makes no difference."""
    tokenizer = TOKENIZERS[name]
    for prompt in ([3 + byte for byte in "語".encode()] * 20_000, [0] * 60_000):
        decoder = tokenizer.stream(prompt)
        assert len(decoder._context + decoder._waiting) <= LOOK_BACK
        assert decoder.push(4) + decoder.flush() == tokenizer.continuation(prompt[-3000:], [4])


def test_a_character_that_the_prompt_begins_comes_out_whole() -> None:
    for name, character in (("byte_level", "ü"), ("byte_fallback", "語")):
        tokenizer = TOKENIZERS[name]
        *known, last = tokenizer.encode("the " + character)
        assert tokenizer.decode(known).endswith("\ufffd")
        assert "".join(streamed(tokenizer, [last], known)) == character
        other = tokenizer.encode("the")[-1:]  # it stays unfinished, as the prompt's text has it
        assert "".join(streamed(tokenizer, other, known)) == tokenizer.decode(other)
        assert "".join(streamed(tokenizer, [], known)) == ""


def test_special_tokens_are_silent_and_unknown_ids_too() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    bos, end = tokenizer.encode("<|story|>"), tokenizer.encode("<|end|>")
    assert len(bos) == len(end) == 1
    tokens = [*bos, *tokenizer.encode("cat"), *end, 10_000, -1, 2**40]
    assert tokenizer.decode(tokens) == "cat"
    assert "".join(streamed(tokenizer, tokens)) == "cat"


@pytest.mark.parametrize("name", NAMES)
def test_cost_of_a_push_does_not_grow_with_the_text(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in tokens decoded; bytes that never make a character must not be decoded over and over."""
    tokenizer, decoded = TOKENIZERS[name], 0
    decode = tokenizer.decode

    def counting(tokens: list[int]) -> str:
        nonlocal decoded
        decoded += len(tokens)
        return decode(tokens)

    monkeypatch.setattr(tokenizer, "decode", counting)
    pushed = [*range(tokenizer.vocab_size)] * 3 + [3 + 0x80] * 500
    streamed(tokenizer, pushed)
    assert decoded <= 4 * len(pushed)


@pytest.mark.parametrize(
    ("name", "text", "visible"),
    [
        ("byte_level", " ", ["␣"]),
        ("byte_level", "\n", ["⏎"]),
        ("byte_level", "<|end|>", ["<|end|>"]),
        ("byte_level", "ü", ["<0xC3>", "<0xBC>"]),
        ("byte_fallback", "the", ["␣", "t", "h", "e"]),
        ("byte_fallback", "a\nü", ["␣", "a", "⏎", "<0xC3>", "<0xBC>"]),
        ("metaspace", "🙂", ["␣", "🙂"]),
        ("byte_level", "\x00\x85", ["<0x00>", "<0xC2>", "<0x85>"]),
    ],
)
def test_visible_form_of_tokens(name: str, text: str, visible: list[str]) -> None:
    tokenizer = TOKENIZERS[name]
    assert [tokenizer.token_text(token) for token in tokenizer.encode(text)] == visible


def test_every_token_shows() -> None:
    for tokenizer in TOKENIZERS.values():
        texts = [tokenizer.token_text(token) for token in range(tokenizer.vocab_size)]
        assert all(text and text.isprintable() for text in texts)
    ascii_bytes = [TOKENIZERS["byte_fallback"].token_text(3 + byte) for byte in (0x00, 0x7F, 0x41)]
    assert ascii_bytes == ["<0x00>", "<0x7F>", "A"]


def test_visible_form_of_an_id_that_no_token_has() -> None:
    assert TOKENIZERS["byte_level"].token_text(10_000) == "<10000>"
    assert TOKENIZERS["byte_level"].token_text(-1) == "<-1>"
