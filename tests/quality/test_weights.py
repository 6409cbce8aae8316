"""Quality of quantized weights: measured as defined, and methods do what they promise."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch

import labcore
from labcore.errors import ConfigError, LabError
from labcore.model import Model
from labcore.quality import (
    Estimate,
    WeightQuality,
    heldout,
    perplexity_change,
    recall_change,
    sensitivity_scan,
    weight_quality,
    weights,
)
from labcore.quality.intervals import paired_mean, perplexity
from labcore.quant import Format, QuantLinear, plant_outliers


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


def made_up(losses: list[float], counts: list[int], right: tuple[bool, ...] = ()) -> WeightQuality:
    found = perplexity(losses, counts)
    return WeightQuality("made up", "definition", 0, found, found, None, tuple(losses), tuple(counts), right)


def drawn_anew(gaps: list[float], counts: list[int], times: int = 20000) -> tuple[float, float]:
    """The interval, text by text in plain Python."""
    stream, places, means = random.Random(1), range(len(gaps)), []
    for _ in range(times):
        picked = stream.choices(places, k=len(gaps))
        means.append(sum(gaps[i] for i in picked) / sum(counts[i] for i in picked))
    means.sort()
    return means[round(0.025 * times)], means[round(0.975 * times)]


def test_a_paired_mean_is_the_bootstrap_of_the_gaps() -> None:
    stream = random.Random(0)
    counts = [stream.randint(20, 200) for _ in range(25)]
    hard = [stream.uniform(0.2, 4) * n for n in counts]  # texts differ far more than the models do
    gaps = [stream.gauss(0.02, 0.02) * n for n in counts]
    found = paired_mean([a + b for a, b in zip(hard, gaps, strict=True)], hard, counts)
    low, high = drawn_anew(gaps, counts)
    assert found.value == pytest.approx(sum(gaps) / sum(counts))
    assert found.low == pytest.approx(low, abs=0.05 * (high - low))
    assert found.high == pytest.approx(high, abs=0.05 * (high - low))
    assert found.count == sum(counts)
    alone = perplexity(hard, counts)
    assert found.high - found.low < 0.05 * math.log(alone.high / alone.low)
    with pytest.raises(ValueError, match="shorter"):
        paired_mean([1.0, 2.0], [1.0], [1, 1])


def test_changes_of_known_size() -> None:
    counts = [10, 30, 20]
    one, other = made_up([12.0, 66.0, 34.0], counts), made_up([10.0, 60.0, 30.0], counts)
    change = perplexity_change(one, other)  # 0.2 nats a token more in every text
    assert change == Estimate(*[pytest.approx(math.exp(0.2) - 1)] * 3, 60)
    uneven = perplexity_change(made_up([14.0, 60.0, 33.0], counts), other)
    ratio = made_up([14.0, 60.0, 33.0], counts).perplexity.value / other.perplexity.value
    assert uneven.value == pytest.approx(ratio - 1)
    assert 0 <= uneven.low < uneven.value < uneven.high <= math.exp(0.4) - 1 + 1e-12
    back = perplexity_change(other, one)
    assert (1 + back.value) * (1 + change.value) == pytest.approx(1)
    half = replace(other, right=(True, False) * 4)
    whole = replace(one, right=(True,) * 8)
    gap = recall_change(half, whole)
    assert gap is not None
    assert (gap.value, gap.count) == (-0.5, 8)
    assert gap.low < -0.5 < gap.high <= 0
    assert recall_change(one, other) is None
    with pytest.raises(LabError, match=r"3 stories of 60 tokens and made up on 2 of 40"):
        perplexity_change(one, made_up([1.0, 2.0], [10, 30]))
    with pytest.raises(LabError, match="asked 8 questions and made up 0"):
        recall_change(half, one)


def test_counts_belong_to_the_losses(full: Model) -> None:
    found = weight_quality(full, full, stories=3, questions=0)
    lengths = [len(full.tokenizer.encode(text, add_bos=True)) for text in heldout.stories(3)]  # type: ignore[union-attr]
    assert list(found.counts) == [length - 16 for length in lengths]
    assert found.perplexity.value == pytest.approx(math.exp(sum(found.losses) / sum(found.counts)))


def test_by_definition_or_as_served_and_afterwards_as_before(
    full: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = story()
    labcore.quantize(model, "int8", progress=False)
    layers = [module for module in model.transformer.modules() if isinstance(module, QuantLinear)]
    layers[1].fast = False
    before = [layer.fast for layer in layers]
    seen: list[tuple[bool, set[bool]]] = []
    real = weights.divergences

    def spy(one: Model, other: Model, texts: list[str]) -> tuple[list[float], list[int], list[float]]:
        seen.append((one.transformer.fast, {layer.fast for layer in layers}))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(one, other, texts)

    monkeypatch.setattr(weights, "divergences", spy)
    told = weight_quality(model, full, stories=2, questions=0)
    assert (model.transformer.fast, [layer.fast for layer in layers]) == (True, before)
    served = weight_quality(model, full, stories=2, questions=0, fast=True)
    assert (model.transformer.fast, [layer.fast for layer in layers]) == (True, before)
    with pytest.raises(KeyboardInterrupt):
        weight_quality(model, full, stories=2, questions=0)
    assert (model.transformer.fast, [layer.fast for layer in layers]) == (True, before)
    assert seen == [(False, {False}), (True, {True}), (False, {False})]
    assert (told.computed, served.computed) == ("definition", "fast")


def test_by_definition_every_product_is_the_reference(full: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    model = story()
    labcore.quantize(model, "int4", progress=False)
    layers = sum(isinstance(module, QuantLinear) for module in model.transformer.modules())
    calls = []
    real = QuantLinear.reference

    def counted(self: QuantLinear, x: torch.Tensor) -> torch.Tensor:
        calls.append(self)
        return real(self, x)

    monkeypatch.setattr(QuantLinear, "reference", counted)
    weight_quality(model, full, stories=2, questions=0)
    assert len(calls) == 2 * layers


def test_refusals(full: Model) -> None:
    model = story()
    with pytest.raises(ConfigError, match="0 channels"):
        plant_outliers(model, channels=0)
    labcore.quantize(model, "int8", progress=False)
    with pytest.raises(ConfigError, match="plant outliers before"):
        plant_outliers(model)
    with pytest.raises(ConfigError, match="scan the one"):
        sensitivity_scan(model, full, Format())
