"""What users read: with every way of spelling, the prompt's text and the answer's are the text of both."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import labcore
from labcore.config import ModelConfig
from labcore.generation import PromptLookup
from labcore.generation.text import TextStream
from labcore.model import Model
from labcore.model.transformer import Transformer
from labcore.serving import LLMEngine, answer
from tests.spellings import TOKENIZERS

NAMES = list(TOKENIZERS)
CONFIG: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 8, "intermediate_size": 16, "max_position_embeddings": 64,
}  # fmt: skip


def model_of(name: str) -> Model:
    """Random weights whose answers wander over all tokens, special ones and bytes too."""
    tokenizer = TOKENIZERS[name]
    config = ModelConfig(**CONFIG, vocab_size=tokenizer.vocab_size)
    torch.manual_seed(0)
    transformer = Transformer(config).requires_grad_(False).eval()
    for parameter in transformer.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    return Model(name, config, transformer, tokenizer)


MODELS = {name: model_of(name) for name in NAMES}


def added(name: str, prompt: list[int], tokens: list[int]) -> str:
    """By the library alone. (The property of any tokens is in test_tokenizer.py.)"""
    before, both = (TOKENIZERS[name].decode(some) for some in (prompt, prompt + tokens))
    return both[len(before) :] if both.startswith(before) else TOKENIZERS[name].continuation(prompt, tokens)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=6, deadline=None)
@given(
    prompt=st.text("the cat s🙂é語\n", min_size=1, max_size=12) | st.lists(st.integers(0, 3), min_size=1),
    new=st.integers(1, 16),
    temperature=st.sampled_from([0.0, 2.0]),
    guess=st.booleans(),
)
def test_prompt_and_answer_are_the_text_of_both(
    name: str, prompt: str | list[int], new: int, temperature: float, guess: bool
) -> None:
    model = MODELS[name]
    how = {"max_new_tokens": new, "temperature": temperature, "seed": 1}
    speculation = PromptLookup(3) if guess else None
    out = labcore.generate(model, prompt, speculation=speculation, **how)
    assert out.text == added(name, out.prompt_tokens, out.tokens)
    pieces = [step.text for step in labcore.stream(model, prompt, speculation=speculation, **how)]
    assert "".join(pieces) == out.text
    engine = LLMEngine(model, num_blocks=20, block_size=4, speculation=speculation)
    (served,) = answer(engine, [prompt], **how)
    assert (served.tokens, served.text) == (out.tokens, out.text)
    best = labcore.generate(model, prompt, max_new_tokens=new, num_beams=2)
    assert best.text == added(name, best.prompt_tokens, best.tokens)


@pytest.mark.parametrize(("stop", "shown"), [(" the", ""), ("the", " "), ("he", " t"), (" s", " the")])
def test_a_stop_string_may_begin_with_the_first_space(stop: str, shown: str) -> None:
    tokenizer = TOKENIZERS["byte_fallback"]
    the = next(token for token in range(tokenizer.vocab_size) if tokenizer.piece(token) == "▁the")
    text = TextStream(tokenizer, [stop], tokenizer.encode("cat"))
    assert text.push(the) + text.flush() == text.text == shown
    assert text.stopped == (stop in " the")


def test_beams_show_no_end() -> None:
    """The end of an answer is no part of its text, special token or not."""
    model = model_of("words")
    model = replace(model, config=replace(model.config, eos_token_ids=(1, 2, 3)))
    out = labcore.generate(model, "the", max_new_tokens=9, num_beams=2)
    assert out.finish_reason == "eos"
    assert out.text == added("words", out.prompt_tokens, out.tokens[:-1])
