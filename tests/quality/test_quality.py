"""Perplexity and recall under a cache: the same for all exact kinds, worse where something is forgotten."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import labcore
from labcore import quality
from labcore.errors import ConfigError, LabError, PromptError
from labcore.model import Model
from labcore.quality import heldout, intervals
from labcore.quality.perplexity import FIRST

FEW = {"stories": 4, "questions": 8, "progress": False}


@pytest.fixture(scope="module")
def story() -> Model:
    return labcore.load("story", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def plain(story: Model) -> quality.Quality:
    return quality.evaluate(story, **FEW)


def test_losses_are_those_of_one_pass(story: Model) -> None:
    texts = heldout.stories(5, seed=1)
    losses, counts = quality.story_losses(story, "contiguous", texts)
    rows = [[*story.tokenizer.encode(text, add_bos=True), *story.config.eos_token_ids] for text in texts]
    shortest = min(len(row) for row in rows if len(row) > FIRST)
    for loss, count, row in zip(losses, counts, [row for row in rows if len(row) > FIRST], strict=True):
        assert count == shortest - FIRST
        logits = labcore.logits(story, row)[0]
        expected = F.cross_entropy(logits[-count - 1 : -1], torch.tensor(row[-count:]), reduction="sum")
        assert loss == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(
    "kind", ["none", "paged", "prefix", "offloaded", "sinks:window=900", "heavy_hitters:budget=1.0"]
)
def test_exact_kinds_change_nothing(story: Model, plain: quality.Quality, kind: str) -> None:
    found = quality.evaluate(story, kind, **FEW)
    assert found.perplexity.value == pytest.approx(plain.perplexity.value, rel=1e-4)
    assert found.right == plain.right
    assert quality.difference(found, plain).value == 0


def test_a_window_forgets_what_lies_before_it(story: Model) -> None:
    found = quality.evaluate(story, "sliding_window:window=64", stories=4, questions=24, progress=False)
    assert found.by_distance["1-64"].value > 0.5 > found.by_distance["129-256"].value
    assert found.kept == 64
    assert found.nbytes * 8 == quality.footprint(story, "contiguous")[0]


def test_recall_is_what_generate_answers(story: Model) -> None:
    items = heldout.questions(8, seed=3)
    for item, right in zip(items, quality.recalled(story, "contiguous", items), strict=True):
        out = labcore.generate(story, item["prompt"], max_new_tokens=8)
        assert right == out.text.strip().startswith(item["answer"])


def test_questions_are_spread_over_distances_and_reproducible() -> None:
    items = heldout.questions(16, seed=5)
    ranges = [heldout.distance_range(item["distance"]) for item in items]
    assert sorted(set(ranges)) == ["1-64", "129-256", "257-512", "65-128"]
    assert all(ranges.count(name) == 4 for name in ranges)
    assert items == heldout.questions(16, seed=5) != heldout.questions(16, seed=6)


def test_intervals() -> None:
    assert quality.wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    same = intervals.perplexity([2.0, 4.0], [1, 2])
    assert same.value == same.low == same.high == pytest.approx(math.exp(2))
    spread = intervals.perplexity([1.0, 3.0], [1, 1])
    assert math.exp(1) <= spread.low < spread.value < spread.high <= math.exp(3) + 1e-9
    gap = intervals.paired_share([True] * 9 + [False], [True] * 5 + [False] * 5)
    assert gap.value == pytest.approx(0.4)
    assert 0 < gap.low < 0.4 < gap.high < 1


def test_what_cannot_be_measured(story: Model) -> None:
    with pytest.raises(ConfigError, match="There is no cache kind 'int5'"):
        quality.evaluate(story, "int5", **FEW)
    with pytest.raises(LabError, match="no questions of the kinds shoe"):
        quality.evaluate(story, **FEW, kinds=("shoe",))
    nameless = Model("tiny", story.config, story.transformer, None)
    with pytest.raises(PromptError, match="'tiny' has no tokenizer"):
        quality.evaluate(nameless, **FEW)
