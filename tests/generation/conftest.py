"""A tiny random model with a character tokenizer: no trained weights are needed to test the loop."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from labcore.config import ModelConfig
from labcore.model import Model
from labcore.model.transformer import Transformer
from labcore.tokenizer import Tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz .,!?"


@pytest.fixture(scope="session")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """One token per letter; the last id is the end of a text."""
    vocab = {letter: i for i, letter in enumerate(LETTERS)} | {"<end>": len(LETTERS)}
    backend = Backend(models.WordLevel(vocab, unk_token="<end>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    path = tmp_path_factory.mktemp("letters") / "tokenizer.json"
    backend.save(str(path))
    return Tokenizer.from_file(path)


@pytest.fixture(scope="session")
def model(letters: Tokenizer) -> Model:
    """Three layers of grouped-query attention; weights large enough that attention matters."""
    config = ModelConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=48, vocab_size=len(LETTERS) + 1, max_position_embeddings=64,
        eos_token_ids=(len(LETTERS),),
    )  # fmt: skip
    torch.manual_seed(0)
    transformer = Transformer(config).requires_grad_(False)
    for parameter in transformer.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    return Model(name="tiny", config=config, transformer=transformer, tokenizer=letters)
