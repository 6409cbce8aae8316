"""Lesson 4's plans, experiments, figures and the day of its block pool, without a notebook."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

import labcore
from labcore import catalog
from labcore.lab import blocks, forgetting, heads, memory_plans
from labcore.lab.exercises import lesson04, registry
from labcore.lab.figures import memory as figures
from labcore.lab.hunts.registry import find
from labcore.lab.widgets import memory as widgets
from labcore.model import Model
from labcore.perf import costs

A10 = catalog.gpu("a10")
PLAN = {"batch": 4, "context": 4096, "dtype": "float16", "cache_bits": 16.0}


@pytest.fixture(scope="module")
def story() -> Model:
    return labcore.load("story", device="cpu", dtype="float32")


def test_golden_values() -> None:
    shapes = [catalog.architecture(name) for name in ("llama-2-7b", "llama-2-70b", "opt-13b")]
    answers = [row["answer"] for row in memory_plans.paper_plan_rows(*shapes, A10)]
    assert answers == ["19,073", "4", "9", "42.9 GB", "343.6 GB", "15,728", "7", "7.5"]


@pytest.mark.parametrize("keeping", memory_plans.KEEPING)
def test_tetris_draws_what_the_plan_says(keeping: str) -> None:
    found = memory_plans.plan_of(catalog.architecture("llama-2-7b"), A10, keeping=keeping, **PLAN)
    drawn = sum(trace.x[0] for trace in figures.tetris_figure(found).data)
    assert drawn == pytest.approx((found.total + max(0, found.free)) / 1e9)
    view = widgets.tetris_view(model="llama-2-7b", gpu="a10", keeping=keeping, **PLAN)
    assert ("and fit" in view.finding) == found.fits
    assert view.rows[-1]["part"] == ("free" if found.fits else "missing")


def test_tetris_names_what_would_fit() -> None:
    view = widgets.tetris_view(
        model="llama-2-7b", gpu="a10", keeping=next(iter(memory_plans.KEEPING)), **{**PLAN, "batch": 64}
    )
    assert "What fits: " in view.finding
    explorer = widgets.make_tetris()
    assert set(explorer.settings) == {"batch", "context", "keeping", "model", "gpu", "dtype", "cache_bits"}


def test_heads_read_what_the_cost_model_says() -> None:
    experiment = heads.compare_heads(64, 2, repeats=3, roofs=labcore.perf.roofs("cpu"))
    mha, gqa, mqa = experiment.runs
    assert (mha.nbytes, mha.costs.kv_read_bytes) == (4 * gqa.nbytes, 4 * gqa.costs.kv_read_bytes)
    assert mqa.costs.kv_read_bytes == 2 * 64 * costs.kv_bytes_per_token(
        heads.SHAPE.with_(num_key_value_heads=1), "float32"
    )
    assert experiment.ratio("MHA") == 1
    assert len(figures.heads_figure(experiment).data) == 2
    assert "GQA holds" in experiment.finding()


def test_a_look_back_shows_what_was_forgotten(story: Model) -> None:
    item = forgetting.question_at(140, 250)
    head = forgetting.retrieving_head(story, item)
    looks = forgetting.look_back(story, ["contiguous", "sliding_window:window=32"], item=item, head=head)
    everything, window = looks.weights
    assert int((~window.isnan()).sum()) == 32
    assert int((~everything.isnan()).sum()) == len(looks.tokens) == len(everything)
    torch.testing.assert_close(everything.nansum(), torch.tensor(1.0))
    full, cut = looks.rows()
    assert full["right"]
    assert not cut["right"]
    assert figures.looks_figure(looks).data[0].type == "heatmap"


def test_quality_is_measured_and_told(story: Model) -> None:
    specs = ["contiguous", "int4", "kivi2", "heavy_hitters:budget=0.2"]
    found = forgetting.weigh(story, specs, stories=2, questions=8)
    rows = forgetting.quality_rows(found)
    assert [row["cache"] for row in rows] == specs
    assert rows[0]["Δ recall (points)"] == "+0 [+0, +0]"
    assert "is int4" in forgetting.quality_finding(found[:2])
    assert [row["cache"] for row in forgetting.claim_rows(found)] == specs[2:]
    assert len(figures.pareto_figure(found).data) == 4
    assert len(figures.distance_figure(found).data) == 4
    by_distance = forgetting.distance_rows(found)
    assert [row["cache"] for row in by_distance] == specs
    ranges = [int(name.split("-")[0].split("+")[0]) for name in list(by_distance[0])[1:]]
    assert ranges == sorted(ranges)
    for cache, *recalled in (row.values() for row in by_distance):
        assert (f"{cache} nowhere" in forgetting.distance_finding(found)) == (min(recalled) >= 50)


def test_a_day_in_the_pool(story: Model) -> None:
    day = blocks.pool_day(story)
    fork = next(index for index, moment in enumerate(day) if "forks" in moment.title)
    assert day[fork].used == day[fork - 1].used, "a fork copies nothing"
    assert any(len(block.users) == 2 for block in day[fork].blocks)
    assert day[fork + 1].used == day[fork].used + 1, "the block being written is copied, no other"
    ben = next(moment for moment in day if moment.title.startswith("Ben begins"))
    assert "8 of them found" in ben.title
    assert ben.hit_tokens == 8
    assert day[-1].evicted > 0
    full = next(moment for moment in day if "pool is full" in moment.title)
    assert full.used == blocks.BLOCKS
    for moment in day:
        for block in moment.blocks:
            assert block.refs == len(block.users) + block.in_tree
        needed = sum(math.ceil(length / blocks.BLOCK_SIZE) for length in moment.lengths.values())
        assert sum(len(block.users) for block in moment.blocks) == needed
        assert widgets.map_view(moment).finding.startswith(moment.title)
        held = {block for row in moment.rows() for block in row["blocks"].split(", ") if row["blocks"] != "–"}
        assert held == {str(block.block) for block in moment.blocks}, "the table tells every block"
        assert len(figures.block_figure(moment).data) >= 1
    explorer = widgets.make_map(day)
    explorer.controls["event"].source.value = 2
    assert explorer.settings == {"event": 2}


@pytest.mark.parametrize("id", ["04.1", "04.2", "04.3", "04.4"])
def test_each_mistake_is_named(id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registered mistakes are run as answers: each must be told by its own sentence."""
    random.seed(3)
    exercise = registry.find(id)
    seen: dict[str, Callable[..., Any]] = {}
    plain = lesson04.on_cases

    def spy(answer: Any, *args: Any, mistakes: dict[str, Callable[..., Any]], **kwargs: Any) -> Any:
        seen.update(mistakes)
        return plain(answer, *args, mistakes=mistakes, **kwargs)

    monkeypatch.setattr(lesson04, "on_cases", spy)
    assert exercise.check(exercise.solution).ok
    for sentence, mistaken in dict(seen).items():
        verdict = exercise.check(mistaken)
        assert not verdict.ok
        assert sentence in verdict.message


def test_hunts_catch_other_bugs_too() -> None:
    assert not find("04.B").check(lambda q, k, w: q[:, None] >= k).ok
    assert not find("04.A").check(lambda self: None).ok
