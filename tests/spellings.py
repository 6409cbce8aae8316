"""Tokenizers of every way of spelling, small enough to be built in a moment."""

from __future__ import annotations

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from labcore.tokenizer import Tokenizer

CORPUS = [
    "the cat sat on the mat",
    "the dog ate the cat's hat\n",
    "naïve café",
    "日本語 テキスト",
    "🙂🙂 👩‍👩‍👧",
]


def byte_level() -> tokenizers.Tokenizer:
    """As Llama 3 and Qwen have: tokens are runs of bytes, a character may be split between them."""
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|story|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(CORPUS, trainer)
    library.add_tokens([AddedToken("plain added ✓", special=False)])
    return library


def byte_fallback() -> tokenizers.Tokenizer:
    """As Llama 2 and Mistral have: ▁ for a space, one token per byte for what the vocabulary lacks."""
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += ["▁", "▁the", "▁▁", "t", "h", "e", "c", "a", "▁cat", "é", "s", "▁s", "\ufffd"]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    merges = [("▁", "▁"), ("▁", "s")]
    library = tokenizers.Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    return library


def metaspace(prepend_scheme: str = "always") -> tokenizers.Tokenizer:
    """As sentencepiece's Metaspace pre-tokenizer has it, without bytes."""
    vocab = {p: i for i, p in enumerate(["<unk>", "▁", "▁the", "▁▁a", "t", "h", "e", "▁cat", "🙂", "é"])}
    library = tokenizers.Tokenizer(models.BPE(vocab, [], unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    library.decoder = decoders.Metaspace(prepend_scheme=prepend_scheme)
    library.add_special_tokens(["<unk>"])
    return library


def words() -> tokenizers.Tokenizer:
    """No decoder: tokens are words, and the library puts a space between them."""
    library = tokenizers.Tokenizer(models.WordLevel({"<unk>": 0, "the": 1, "cat": 2, "s": 3}, "<unk>"))
    library.add_special_tokens(["<unk>"])
    return library


TOKENIZERS = {build.__name__: Tokenizer(build()) for build in (byte_level, byte_fallback, metaspace)}
TOKENIZERS |= {f"metaspace {scheme}": Tokenizer(metaspace(scheme)) for scheme in ("first", "never")}
TOKENIZERS["words"] = Tokenizer(words())
