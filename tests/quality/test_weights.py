"""Quality of quantized weights: measured as defined, and methods do what they promise."""

from __future__ import annotations

import math

import pytest
import torch

import labcore
from labcore.errors import ConfigError
from labcore.model import Model
from labcore.quality import heldout, sensitivity_scan, weight_quality
from labcore.quant import Format, plant_outliers


def story(planted: bool = False) -> Model:
    model = labcore.load("story", dtype="float32")
    if planted:
        plant_outliers(model)
    return model


@pytest.fixture(scope="module")
def full() -> Model:
    return story()


def test_against_the_definitions_text_by_text(full: Model) -> None:
    model = story()
    labcore.quantize(model, "int3", progress=False)
    found = weight_quality(model, full, stories=3, questions=0)
    loss = gap = count = 0.0
    for text in heldout.stories(3):
        ids = model.tokenizer.encode(text, add_bos=True)  # type: ignore[union-attr]
        mine, theirs = (labcore.logits(one, [ids])[0].softmax(-1) for one in (model, full))
        for place in range(16, len(ids)):
            loss -= math.log(mine[place - 1, ids[place]])
            p, q = theirs[place - 1], mine[place - 1]
            gap += float((p * (p / q).log()).sum())
            count += 1
    assert found.perplexity.value == pytest.approx(math.exp(loss / count), rel=1e-3)
    assert found.divergence.value == pytest.approx(gap / count, rel=1e-3)
    assert found.divergence.low < found.divergence.value < found.divergence.high
    assert found.recall is None
    assert found.recipe == model.recipe


def test_the_same_model_has_no_divergence_and_recalls_alike(full: Model) -> None:
    found = weight_quality(story(), full, stories=2, questions=8)
    assert found.divergence.value == pytest.approx(0, abs=1e-6)
    assert found.recall is not None
    assert found.recall.value >= 7 / 8


def test_planted_outliers_change_nothing_in_full_precision(full: Model) -> None:
    model = story(planted=True)
    tokens = [[1, 5, 9, 20, 7, 33, 250, 8]]
    torch.testing.assert_close(
        labcore.logits(model, tokens), labcore.logits(full, tokens), rtol=1e-3, atol=1e-3
    )


@pytest.mark.slow
def test_published_effects_of_outliers(full: Model) -> None:
    def divergence(recipe: str) -> float:
        model = story(planted=True)
        labcore.quantize(model, recipe, progress=False)
        model.transformer.fast = False
        return weight_quality(model, full, stories=6, questions=0).divergence.value

    naive = divergence("w8a8")
    curve = {alpha: divergence(f"smoothquant:activations=static,alpha={alpha}") for alpha in (0.0, 0.5)}
    assert naive > 0.5
    assert divergence("w8a8:activations=static") > naive  # coarser still
    assert curve[0.5] < 0.01 * naive
    assert curve[0.5] < 0.5 * curve[0.0]
    assert divergence("llm_int8") < 0.01 * naive
    assert divergence("awq-int4") < 0.1 * divergence("int4")


def test_a_scan_leaves_the_model_as_it_was(full: Model) -> None:
    model = story()
    before = labcore.logits(model, [[1, 5, 9]])
    rows = sensitivity_scan(model, full, Format("int2", "group", 64), stories=1)
    assert len(rows) == 4 * 6 + 1
    assert all(row.divergence > 0 and 0 < row.weight_error < 1 for row in rows)
    assert torch.equal(labcore.logits(model, [[1, 5, 9]]), before)
    eight = sensitivity_scan(model, full, Format("int8"), stories=1)
    assert max(row.divergence for row in eight) < 0.01 * max(row.divergence for row in rows)


def test_refusals(full: Model) -> None:
    model = story()
    with pytest.raises(ConfigError, match="0 channels"):
        plant_outliers(model, channels=0)
    labcore.quantize(model, "int8", progress=False)
    with pytest.raises(ConfigError, match="plant outliers before"):
        plant_outliers(model)
    with pytest.raises(ConfigError, match="scan the one"):
        sensitivity_scan(model, full, Format())
