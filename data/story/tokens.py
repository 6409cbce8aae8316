"""The tokenizer: byte-level BPE trained on the story world's own text, so that any UTF-8 text round-trips."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from data.story import lexicon
from data.story.questions import make_document

BOS, EOS = "<|story|>", "<|end|>"
VOCAB_SIZE = 1024
_SAMPLE_DOCUMENTS = 6000
# Names and nouns are repeated, so that each gets a token of its own whatever its frequency in the stories.
_WORD_REPEATS = 2000


def _corpus() -> Iterator[str]:
    for seed in range(_SAMPLE_DOCUMENTS):
        yield make_document(f"tokenizer {seed}", 60 + seed % 340).text
    words = [*lexicon.GIRLS, *lexicon.BOYS, *lexicon.SECOND_NAMES, *lexicon.COLOURS, *lexicon.NUMBERS]
    words += [*lexicon.SINGLES, *lexicon.PLURALS, *lexicon.PLACES]
    yield "".join(f" {word}" for word in words) * _WORD_REPEATS


def train_tokenizer() -> Tokenizer:
    """Train on a fixed sample of documents; always the same tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    # Says to whoever reads the file that a document begins with bos.
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json."""
    return Tokenizer.from_file(str(path))
