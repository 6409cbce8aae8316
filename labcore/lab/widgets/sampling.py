"""The sampling explorer: temperature, a cut and the repetition penalty over the real logits of one step."""

from __future__ import annotations

from functools import partial

from labcore.errors import LessonError
from labcore.generation import SamplingParams, Trace
from labcore.lab.figures.sampling import rank, ranking_figure, ranking_finding
from labcore.lab.figures.two_steps import safe
from labcore.lab.widgets.common import Explorer, View, slider
from labcore.lab.widgets.debugger import sequence, visible
from labcore.model import Model

TEMPERATURES = (0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0)
PENALTIES = (1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 2.0)
Cut = tuple[str, float]
OFF: Cut = ("off", 0.0)
CUTS: tuple[Cut, ...] = (
    OFF,
    *(("top_k", float(k)) for k in (1, 2, 3, 5, 10, 20, 50)),
    *(("top_p", p) for p in (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)),
)


def cut_name(cut: Cut) -> str:
    """As the slider shows it: "off", "top-k 5", "top-p 0.9"."""
    kind, value = cut
    return kind if kind == "off" else f"{kind.replace('_', '-')} {value:g}"


def params_of(temperature: float, cut: Cut, penalty: float) -> SamplingParams:
    """The engine's own settings for what the controls say."""
    kind, value = cut
    return SamplingParams(
        temperature=temperature,
        top_k=int(value) if kind == "top_k" else 0,
        top_p=value if kind == "top_p" else 1.0,
        repetition_penalty=penalty,
    )


def sampling_view(
    model: Model, trace: Trace, step: int, shown: int, temperature: float, cut: Cut, penalty: float
) -> View:
    """Before and after for the `shown` likeliest tokens of a step, under these settings."""
    params, recorded = params_of(temperature, cut, penalty), trace.steps[step]
    tokens = recorded.logits.topk(min(shown, len(recorded.logits))).indices.tolist()
    texts = visible(model, tokens)
    ranking = rank(recorded.logits, params, texts, tokens, sequence(trace, step))
    before = safe("".join(visible(model, sequence(trace, step))[-8:]))
    title = f"Step {step}, after “…{before}” · ↻ marks tokens already in the text"
    return View(ranking_figure(ranking, title), ranking_finding(ranking, params), ranking.rows())


def sampling_explorer(
    model: Model,
    trace: Trace | None,
    *,
    step: int = 0,
    shown: int = 24,
    temperature: float = 1.0,
    cut: Cut = ("top_p", 0.9),
    penalty: float = 1.0,
) -> None:
    """Re-rank the recorded logits of `step` live. Raises LessonError for a step that was not recorded."""
    make(model, trace, step, shown, temperature, cut, penalty).show()


def make(
    model: Model, trace: Trace | None, step: int, shown: int, temperature: float, cut: Cut, penalty: float
) -> Explorer:
    """The explorer, not placed yet."""
    if trace is None or not 0 <= step < len(trace.steps):
        held = 0 if trace is None else len(trace.steps)
        raise LessonError(
            f"Step {step} is not among the {held} recorded; generate with trace=True and choose one."
        )
    return Explorer(
        partial(sampling_view, model, trace, step, shown),
        temperature=slider("Temperature", TEMPERATURES, temperature),
        cut=slider("Cut", CUTS, cut, cut_name),
        penalty=slider("Repetition penalty", PENALTIES, penalty),
    )
