"""Lesson 3's numbers, figures, exercises and hunts, without a notebook."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

import labcore
from labcore import catalog
from labcore.errors import LessonError
from labcore.lab import recompute
from labcore.lab.exercises import lesson03, registry
from labcore.lab.figures import recompute as figures
from labcore.lab.hunts.registry import find
from labcore.lab.widgets import recompute as widget
from labcore.model import Model
from labcore.perf import costs
from tests.lab.conftest import tiny_model

LLAMA = catalog.architecture("llama-2-7b")


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


def test_golden_values() -> None:
    scores = costs.attention_scores_flops
    assert scores(LLAMA, 1000, 1000) == pytest.approx(2.62e11, rel=2e-3)
    assert scores(LLAMA, 1000) == pytest.approx(2.62e8, rel=2e-3)
    facts = {row["fact"].split(",")[-1].strip(): row["value"] for row in recompute.paper_facts(LLAMA)}
    assert list(facts.values()) == ["100×", "10.35×", "25,705 tokens", "386×"]
    assert recompute.half_attention(LLAMA, 6.74e9) == 25_711
    row = recompute.paper_rows(LLAMA, [1000])[0]
    assert row["attention's share, on (%)"] == 3.7


def test_what_is_computed_again_is_counted_from_traces(model: Model) -> None:
    traces = recompute.traced_both(model, [1, 2, 3, 4, 5], 6)
    assert recompute.computed_again(traces["off"]) == lesson03.again(5, 6)
    assert recompute.computed_again(traces["on"]) == 0
    rows = {row["cache"]: row for row in figures.counter_rows(traces, 5)}
    assert rows["off"]["positions computed"] == 5 + 6 + 7 + 8 + 9 + 10
    assert (
        rows["on"]["bytes held"] == f"{10 * costs.kv_bytes_per_token(model.config, 'float32') / 1e3:.3g} kB"
    )


def test_the_grid_marks_rows_by_the_trace(model: Model) -> None:
    traces = recompute.traced_both(model, [1, 2, 3], 3)
    off, on = (
        figures.step_cells(traces[way].steps[1], traces[way].steps[0].context) for way in ("off", "on")
    )
    f, h, a, n = figures.FUTURE, figures.HELD, figures.AGAIN, figures.NEW
    assert off == [[a, f, f, f], [a, a, f, f], [a, a, a, f], [n, n, n, n]]
    assert on == [[h, f, f, f], [h, h, f, f], [h, h, h, f], [n, n, n, n]]
    view = widget.grid_view(traces, 1, "off")
    assert "4 of 4 rows are computed. So far 3 of 7 positions were computed again" in view.finding
    assert [trace.name for trace in view.figure.data] == [
        "read from the cache (0 rows)", "computed again (3 rows)", "computed for the first time (1 rows)",
    ]  # fmt: skip


def test_the_explorer_steps_and_switches(model: Model, session: object) -> None:
    explorer = widget.make(recompute.traced_both(model, [1, 2, 3], 4))
    explorer.controls["cache"].source.value = "on"
    explorer.controls["step"].source.value = 3
    assert explorer.settings == {"step": 3, "cache": "on"}


def test_growth_is_measured_at_every_length(model: Model) -> None:
    growth = recompute.sweep_growth(model, [4, 40], roofs=labcore.perf.roofs("cpu"))
    assert growth.lengths == [4, 40]
    off, on = growth.points["off"][1], growth.points["on"][1]
    assert off.work.flops == costs.step_costs(model.config, 1, 40, 1, dtype="float32", cached=False).flops
    assert on.work.nbytes == costs.step_costs(model.config, 1, 40, 1, dtype="float32").bytes
    figure = figures.growth_figure(growth, predicted=8.0)
    assert [trace.name for trace in figure.data][-1] == "your prediction, cache off"
    assert "4 → 40 tokens" in growth.finding()
    with pytest.raises(LessonError, match="between 2 and the 128"):
        recompute.sweep_growth(model, [1])


def test_copies_are_counted_by_the_cache(model: Model) -> None:
    copies = recompute.compare_copies(model, [3, 10], roofs=labcore.perf.roofs("cpu"))
    per_token = costs.kv_bytes_per_token(model.config, "float32")
    assert copies.held == (3 * per_token, 10 * per_token)
    assert copies.copied["growing"] == (lesson03.copied(1, 3, per_token), lesson03.copied(1, 10, per_token))
    assert copies.copied["contiguous"] == (0, 0)
    assert len(figures.copies_figure(copies).data) == 3
    assert "4.5× as much" in copies.finding()


def test_the_cache_is_exact_under_the_mask_and_only_there(model: Model) -> None:
    causal, bidirectional = recompute.equality_rows(model, list(range(20)))
    assert causal["the same within 1e-4"]
    assert bidirectional["largest difference of a logit"] > 1e-2


def test_the_puzzle_is_computed(model: Model) -> None:
    off, on = recompute.puzzle_rows(catalog.architecture("qwen3-0.6b"), 312e12, 2039e9, 500)
    assert 26 * 10 < off["peaks allow (tok/s)"] < on["peaks allow (tok/s)"]


@pytest.mark.parametrize("id", ["03.1", "03.2", "03.3", "03.4"])
def test_the_solution_passes_and_each_mistake_is_named(id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registered mistakes are run as answers: each must be told by its own sentence."""
    random.seed(1)
    exercise = registry.find(id)
    seen: dict[str, Callable[..., Any]] = {}
    plain = lesson03.on_cases

    def spy(answer: Any, *args: Any, mistakes: dict[str, Callable[..., Any]], **kwargs: Any) -> Any:
        seen.update(mistakes)
        return plain(answer, *args, mistakes=mistakes, **kwargs)

    monkeypatch.setattr(lesson03, "on_cases", spy)
    assert exercise.check(exercise.solution).ok
    assert seen
    for sentence, mistaken in dict(seen).items():
        verdict = exercise.check(mistaken)
        assert not verdict.ok
        assert sentence in verdict.message


def test_a_hunt_catches_other_bugs_too() -> None:
    def keys_not_turned(self: Any, x: Any, cos: Any, sin: Any, cache: Any) -> Any:
        batch, n, _ = x.shape
        qkv = self.qkv_proj(x).view(batch, n, -1, self.head_dim).transpose(1, 2)
        q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        q = labcore.kernels.apply_rope(q, cos, sin)
        mixed = cache.attend(self.layer, q, k, v)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, n, -1))

    def never(self: Any, n: int) -> None:
        pass

    assert not find("03.A").check(keys_not_turned).ok
    assert not find("03.B").check(never).ok
    torch.manual_seed(0)
