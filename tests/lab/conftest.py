"""A lesson's session without a notebook: a tiny random model, results in a folder that is thrown away."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from labcore.config import ModelConfig
from labcore.lab import session as sessions
from labcore.lab.results import Results
from labcore.model import Model
from labcore.model.transformer import Transformer


def tiny_model(seed: int = 0) -> Model:
    """Two layers, grouped queries, 64 tokens of vocabulary; takes token ids only."""
    config = ModelConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=64,
        vocab_size=64,
        max_position_embeddings=128,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    return Model("tiny", config, Transformer(config).eval(), tokenizer=None, random_weights=True)


@pytest.fixture
def results_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's results are written."""
    monkeypatch.setenv("LABCORE_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"


@pytest.fixture
def session(results_folder: Path, monkeypatch: pytest.MonkeyPatch) -> sessions.Session:
    """A running session of lesson 01 in learner mode."""
    made = sessions.Session(tiny_model(), "quick", "learner", 0, "01", Results.open("01"))
    monkeypatch.setattr(sessions, "_current", made)
    return made
