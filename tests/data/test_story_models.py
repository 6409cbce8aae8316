"""The files in data/story: the exported models, the held-out set, the evaluation and the card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

import labcore
from data.story import heldout
from data.story.card import BEGIN, END
from data.story.evaluate import answers_right, wilson
from data.story.questions import make_document
from data.story.tokens import train_tokenizer

HOME = Path(heldout.__file__).parent
FOLDERS = {"story": HOME / "model", "story-draft": HOME / "draft"}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(HOME / "model" / "tokenizer.json"))


@pytest.mark.parametrize("name", FOLDERS)
def test_a_checkpoint_is_small_and_of_the_size_the_card_states(name: str) -> None:
    model = labcore.load(name, device="cpu", dtype="float32")
    low, high = (3e6, 5e6) if name == "story" else (0.7e6, 1.3e6)
    assert low < model.num_parameters < high
    assert (FOLDERS[name] / "model.safetensors").stat().st_size < 10e6
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    evaluation = json.loads((HOME / "evaluation.json").read_text())
    assert evaluation["parameters"][name] == model.num_parameters


@pytest.mark.parametrize("name", FOLDERS)
def test_transformers_computes_the_same_logits(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    ours = labcore.load(name, device="cpu", dtype="float32")
    theirs = transformers.LlamaForCausalLM.from_pretrained(FOLDERS[name], dtype=torch.float32).eval()
    tokens = torch.tensor([ours.tokenizer.encode(make_document("parity", 200).text, add_bos=True)])
    with torch.no_grad():
        expected = theirs(tokens).logits
    assert (labcore.logits(ours, tokens) - expected).abs().max() < 1e-3
    prompt = ours.tokenizer.encode("Once upon a time", add_bos=True)
    said = theirs.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False)[0, len(prompt) :]
    assert labcore.generate(ours, "Once upon a time", max_new_tokens=40).tokens == said.tolist()


def test_the_tokenizer_is_the_one_that_the_code_trains(tokenizer: Tokenizer) -> None:
    assert json.loads(train_tokenizer().to_str()) == json.loads(tokenizer.to_str())
    draft = (HOME / "draft" / "tokenizer.json").read_text()
    assert draft == (HOME / "model" / "tokenizer.json").read_text()


@pytest.mark.parametrize(
    "text", ["Once upon a time", "naïve — 東京 🙂\n\ttab", "\u200b\x00", "  two  spaces "]
)
def test_any_text_round_trips(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_names_and_answers_are_single_tokens(tokenizer: Tokenizer) -> None:
    from data.story import lexicon

    words = [*lexicon.GIRLS, *lexicon.BOYS, *lexicon.SECOND_NAMES, *lexicon.COLOURS, *lexicon.NUMBERS]
    words += [*lexicon.SINGLES, *lexicon.PLURALS, *lexicon.PLACES]
    several = [w for w in words if len(tokenizer.encode(f" {w}", add_special_tokens=False).ids) > 1]
    assert len(several) <= len(words) // 50, several


def test_the_held_out_set_is_made_by_its_code(tokenizer: Tokenizer) -> None:
    assert heldout.PATH.stat().st_size <= 1_000_000
    assert heldout.read("story") == list(heldout.stories())
    items = heldout.read("recall")
    assert len(items) >= 900
    made = heldout.recalls(tokenizer)
    assert [next(made) for _ in range(40)] == items[:40]


def test_held_out_distances_and_answers_are_true(tokenizer: Tokenizer) -> None:
    for item in heldout.read("recall"):
        prompt = tokenizer.encode(item["prompt"]).ids
        assert len(prompt) == item["prompt_tokens"] <= 512
        assert 0 < item["distance"] <= item["prompt_tokens"] + 2
        assert item["answer"].split()[-1] in item["prompt"]
        if item["kind"] == "name":
            first = item["prompt"].split()[-1]
            assert f"{first} {item['answer']}" in item["prompt"]
            told = item["prompt"].rindex(f"{first} {item['answer']}") + len(f"{first} {item['answer']}")
            between = tokenizer.encode(item["prompt"][told:], add_special_tokens=False).ids
            assert item["distance"] == len(between) + 1


def test_wilson_interval() -> None:
    low, high = wilson(90, 100)
    assert (round(low, 3), round(high, 3)) == (0.826, 0.945)
    assert wilson(0, 10)[0] == pytest.approx(0, abs=1e-9)


def test_the_model_answers_held_out_questions_as_the_evaluation_says() -> None:
    """A sample of the near questions is answered about as well as evaluation.json states."""
    model = labcore.load("story", device="cpu", dtype="float32")
    items = [item for item in heldout.read("recall") if item["distance"] <= 64]
    stated = json.loads((HOME / "evaluation.json").read_text())["recall"]["story"]["by_distance"]
    for grade in ("induction", "binding"):
        results = answers_right(model, [item for item in items if item["grade"] == grade])
        assert sum(ok for _, ok in results) == pytest.approx(stated[grade]["1-64"]["right"], abs=2)


def test_the_card_holds_the_measurement() -> None:
    card = (HOME / "MODEL_CARD.md").read_text()
    evaluation = json.loads((HOME / "evaluation.json").read_text())
    measured = card[card.index(BEGIN) : card.index(END)]
    assert f"{evaluation['perplexity']['story']['perplexity']:.3f}" in measured
    assert f"{evaluation['draft_agreement']['share']:.1%}" in measured
