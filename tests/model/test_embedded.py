"""The embedded models: they load with nothing but this repository, and transformers reads them alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import labcore
from labcore import catalog

NAMES = ("story", "story-draft")
PROMPT = "At the river"


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_loads_whole_with_its_tokenizer(name: str) -> None:
    model = labcore.load(name, device="cpu")
    assert model.name == name
    assert not model.random_weights
    assert model.tokenizer is not None
    assert model.tokenizer.adds_bos
    assert model.tokenizer.bos_id == model.config.bos_token_id
    assert model.tokenizer.vocab_size <= model.config.vocab_size
    assert [model.tokenizer.token_text(token) for token in model.config.eos_token_ids] == ["<|end|>"]


def test_transformers_reads_it_alike(name: str) -> None:
    import transformers

    folder: Path = catalog.embedded(name)
    model = labcore.load(name, device="cpu", dtype="float32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert model.tokenizer is not None
    tokens = model.tokenizer.encode(PROMPT, add_bos=True)
    assert tokens == tokenizer(PROMPT)["input_ids"]
    inputs = torch.tensor([tokens])
    settings = {"attention_mask": torch.ones_like(inputs), "max_new_tokens": 40, "do_sample": False}
    with torch.no_grad():
        expected = theirs(inputs).logits
        generated = theirs.generate(inputs, **settings)
    torch.testing.assert_close(labcore.logits(model, tokens), expected, atol=1e-4, rtol=0)
    out = labcore.generate(model, tokens, max_new_tokens=40)
    new = generated[0, len(tokens) :].tolist()
    assert out.tokens == new
    assert out.text == tokenizer.decode(new, skip_special_tokens=True)


def test_files_are_small_and_safe(name: str) -> None:
    files = {path.name: path.stat().st_size for path in catalog.embedded(name).iterdir() if path.is_file()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files.keys()
    assert sum(files.values()) < 10e6
    assert not [file for file in files if file.endswith((".bin", ".pt", ".pth", ".pkl"))]
