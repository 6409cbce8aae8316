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
    rope_theta=100_000.0,  # with heads this small, more of the rotary pairs must turn slowly
    tie_word_embeddings=True,
)
DRAFT = MAIN.with_(
    hidden_size=192,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=1,
    intermediate_size=384,
)


def main_plan() -> Plan:
    """From one fact in 64 tokens up to stories of 512."""
    return Plan(
        MAIN,
        stages=(
            Stage(300, {64: 0.7, 128: 0.3}),
            Stage(500, {64: 0.2, 128: 0.5, 256: 0.3}),
            Stage(400, {64: 0.3, 128: 0.4, 256: 0.3}),
            Stage(950, {64: 0.1, 128: 0.2, 256: 0.35, 512: 0.35}),
        ),
        decay=550,
        peak_lr=2e-3,
    )


def draft_plan(teacher: Path) -> Plan:
    """The same text, and the main model's distribution over every next token."""
    return Plan(
        DRAFT,
        stages=(
            Stage(200, {64: 0.7, 128: 0.3}),
            Stage(300, {64: 0.2, 128: 0.5, 256: 0.3}),
            Stage(500, {64: 0.1, 128: 0.3, 256: 0.4, 512: 0.2}),
        ),
        decay=350,
        seed=1,
        peak_lr=2e-3,
        teacher=teacher,
    )
