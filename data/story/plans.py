"""The two training runs, as data."""

from __future__ import annotations

from pathlib import Path

from data.story.tokens import VOCAB_SIZE
from data.story.train import Plan, Stage
from labcore.config import ModelConfig

# Tokens of training rows per bucket; a run that needs more uses them again.
ROW_TOKENS = {64: 4_000_000, 128: 8_000_000, 256: 10_000_000, 512: 14_000_000}

MAIN = ModelConfig(
    hidden_size=256,
    num_hidden_layers=6,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=32,
    intermediate_size=448,
    vocab_size=VOCAB_SIZE,
    max_position_embeddings=1024,
    tie_word_embeddings=True,
)
DRAFT = MAIN.with_(
    hidden_size=160, num_hidden_layers=3, num_attention_heads=5, num_key_value_heads=1, intermediate_size=448
)


def main_plan() -> Plan:
    """From one fact in 64 tokens up to stories of 512."""
    return Plan(
        MAIN,
        stages=(
            Stage(200, {64: 1.0}),
            Stage(300, {64: 0.2, 128: 0.8}),
            Stage(500, {64: 0.1, 128: 0.25, 256: 0.65}),
            Stage(400, {128: 0.6, 256: 0.4}),
            Stage(400, {64: 0.5, 128: 0.5}),
            Stage(400, {64: 0.1, 128: 0.5, 256: 0.4}),
            Stage(2400, {64: 0.1, 128: 0.15, 256: 0.35, 512: 0.4}),
        ),
        decay=700,
    )


def draft_plan(teacher: Path) -> Plan:
    """The same text, and the main model's distribution over every next token."""
    return Plan(
        DRAFT,
        stages=(
            Stage(200, {64: 1.0}),
            Stage(400, {64: 0.2, 128: 0.8}),
            Stage(600, {64: 0.1, 128: 0.3, 256: 0.6}),
            Stage(300, {128: 0.2, 256: 0.4, 512: 0.4}, batch=16384),
        ),
        decay=500,
        seed=1,
        teacher=teacher,
    )
