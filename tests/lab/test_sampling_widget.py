"""The sampling explorer: before and after are the engine's own numbers, for every setting of its controls."""

from __future__ import annotations

import pytest
import torch

from labcore import generate
from labcore.errors import LessonError
from labcore.generation import SamplingParams, Trace, process_logits
from labcore.lab.exercises.loops import tiny_model
from labcore.lab.figures.sampling import least_certain, probabilities, rank, ranking_figure, survivors
from labcore.lab.widgets import sampling
from labcore.lab.widgets.debugger import sequence
from labcore.lab.widgets.sampling import CUTS, OFF, PENALTIES, TEMPERATURES, cut_name, params_of
from labcore.model import Model

LOGITS = torch.tensor([2.0, 1.0, 0.0])


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


@pytest.fixture(scope="module")
def trace(model: Model) -> Trace:
    out = generate(model, [5, 6, 7], max_new_tokens=4, temperature=3.0, ignore_eos=True, trace=True)
    assert out.trace is not None
    return out.trace


def test_golden_values_of_the_three_logits() -> None:
    assert probabilities(LOGITS, SamplingParams(temperature=1.0)).tolist() == pytest.approx(
        [0.665, 0.245, 0.090], abs=5e-4
    )
    assert probabilities(LOGITS, SamplingParams(temperature=0.5)).tolist() == pytest.approx(
        [0.867, 0.117, 0.016], abs=5e-4
    )
    assert probabilities(LOGITS, SamplingParams()).tolist() == [1, 0, 0]


def test_ranking_states_what_is_cut_and_what_it_held() -> None:
    found = rank(LOGITS, SamplingParams(temperature=1.0, top_p=0.9), "abc", [0, 1, 2])
    assert found.kept == (True, True, False)
    assert (found.survivors, found.vocabulary) == (2, 3)
    assert found.survivors_share == pytest.approx(0.910, abs=1e-3)
    assert sum(found.after) == pytest.approx(1)
    assert found.after[2] == 0 < found.before[2]


def test_penalty_acts_on_tokens_of_the_history_only() -> None:
    params = SamplingParams(temperature=1.0, repetition_penalty=2.0)
    found = rank(LOGITS, params, "abc", [0, 1, 2], history=[0])
    assert found.penalised == (True, False, False)
    assert found.after[0] < found.before[0]
    assert found.after[1] > found.before[1]
    assert found.after[0] == pytest.approx(found.after[1])  # 2 / 2 = 1: as likely as the token of logit 1


def test_cut_tokens_differ_by_pattern_and_are_named() -> None:
    figure = ranking_figure(rank(LOGITS, SamplingParams(temperature=1.0, top_k=1), "abc", [0, 1, 2]), "t")
    bars = {trace.name.split(":")[0]: trace for trace in figure.data}
    assert list(bars["before"].marker.pattern.shape) == ["", "x", "x"]
    assert list(bars["after"].text) == ["100.0%", "cut", "cut"]
    assert figure.layout.xaxis.title.text == "probability (%)"


def test_texts_are_safe_in_labels() -> None:
    figure = ranking_figure(rank(LOGITS, SamplingParams(), ["<|end|>", "&", "c"], [0, 1, 2]), "t")
    assert list(figure.layout.yaxis.ticktext) == ["‘&lt;|end|&gt;’", "‘&amp;’", "‘c’"]


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("cut", CUTS, ids=cut_name)
def test_every_setting_shows_what_the_engine_would_draw_from(
    model: Model, trace: Trace, temperature: float, cut: sampling.Cut
) -> None:
    for penalty in (PENALTIES[0], PENALTIES[-1]):
        view = sampling.sampling_view(model, trace, 2, 64, temperature, cut, penalty)
        params = params_of(temperature, cut, penalty)
        history = torch.tensor([sequence(trace, 2)])
        processed = process_logits(trace.steps[2].logits[None], params, history)[0]
        kept = 1 if params.greedy else int((processed.softmax(-1) > 0).sum())
        assert sum(row["kept"] for row in view.rows) == kept
        assert sum(row["after (%)"] for row in view.rows) == pytest.approx(100, abs=1e-3)
        assert f" {kept:,} of 64 token" in view.finding


def test_controls_mean_the_engines_settings() -> None:
    assert params_of(0.7, ("top_k", 5.0), 1.1) == SamplingParams(
        temperature=0.7, top_k=5, repetition_penalty=1.1
    )
    assert params_of(1.0, ("top_p", 0.9), 1.0) == SamplingParams(temperature=1.0, top_p=0.9)
    assert params_of(1.0, OFF, 1.0) == SamplingParams(temperature=1.0)
    assert [cut_name(cut) for cut in (OFF, ("top_k", 5.0), ("top_p", 0.95))] == [
        "off",
        "top-k 5",
        "top-p 0.95",
    ]


def test_moving_a_control_re_ranks(model: Model, trace: Trace, capsys: pytest.CaptureFixture[str]) -> None:
    made = sampling.make(model, trace, 1, 6, 1.0, ("top_p", 0.9), 1.0)
    assert len(made.controls) == 3
    assert all(control.source.description for control in made.controls.values())
    made.show()
    before = capsys.readouterr().out
    made.controls["temperature"].source.value = 5.0
    after = capsys.readouterr().out
    assert "temperature 5: " in after
    assert "temperature 1: " in before


def test_the_least_certain_step_has_the_flattest_logits(trace: Trace) -> None:
    index = least_certain(trace)
    entropies = [-(p * p.log()).nansum() for p in (step.logits.double().softmax(-1) for step in trace.steps)]
    assert entropies[index] == max(entropies)


def test_survivors_grow_with_temperature_and_p(trace: Trace) -> None:
    step = trace.steps[0]
    narrow = survivors(step, temperature=1.0, top_p=0.5)
    assert (
        narrow <= survivors(step, temperature=1.0, top_p=0.9) <= survivors(step, temperature=3.0, top_p=0.9)
    )
    assert survivors(step, temperature=1.0) == 64


@pytest.mark.parametrize("step", [-1, 4])
def test_a_step_that_was_not_recorded_is_refused(model: Model, trace: Trace, step: int) -> None:
    with pytest.raises(LessonError, match=f"Step {step} is not among the 4 recorded"):
        sampling.sampling_explorer(model, trace, step=step)
    with pytest.raises(LessonError, match="among the 0 recorded"):
        sampling.sampling_explorer(model, None)
