"""Figures of choosing a token: probabilities before and after the sampling settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
import torch
from torch import Tensor

from labcore.generation import SamplingParams, Trace, TraceStep, process_logits
from labcore.lab import theme
from labcore.lab.figures.two_steps import quoted
from labcore.lab.units import significant


@dataclass(frozen=True)
class Ranking:
    """The likeliest tokens before the settings, and what the settings made of them.

    before, after: probabilities; kept: whether the settings left the token any. survivors, survivors_share:
    how many tokens of the whole vocabulary are left, and the probability they held before.
    """

    texts: tuple[str, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    kept: tuple[bool, ...]
    penalised: tuple[bool, ...]
    survivors: int
    survivors_share: float
    vocabulary: int

    def rows(self) -> list[dict[str, Any]]:
        """The exact numbers, best first."""
        columns = zip(self.texts, self.before, self.after, self.kept, self.penalised, strict=True)
        return [
            {
                "token": text,
                "before (%)": before * 100,
                "after (%)": after * 100,
                "kept": kept,
                "seen before": seen,
            }
            for text, before, after, kept, seen in columns
        ]


def probabilities(logits: Tensor, params: SamplingParams, history: Tensor | None = None) -> Tensor:
    """What the draw uses: (vocab,) logits -> (vocab,) probabilities; all on the best token when greedy."""
    processed = process_logits(logits[None], params, None if history is None else history[None])[0]
    if params.greedy:
        return torch.nn.functional.one_hot(processed.argmax(), len(processed)).to(processed.dtype)
    return processed.softmax(-1)


def least_certain(trace: Trace) -> int:
    """The step whose distribution over the next token has the largest entropy: the most open choice."""
    entropies = [float(torch.distributions.Categorical(logits=step.logits).entropy()) for step in trace.steps]
    return entropies.index(max(entropies))


def survivors(step: TraceStep, **settings: Any) -> int:
    """How many tokens a step's real logits keep under these sampling settings."""
    return int((probabilities(step.logits, SamplingParams(**settings)) > 0).sum())


def rank(
    logits: Tensor,
    params: SamplingParams,
    texts: Sequence[str],
    tokens: Sequence[int],
    history: Sequence[int] = (),
) -> Ranking:
    """Hold the plain softmax of real logits against the same logits under `params`.

    logits: (vocab,) of one step. texts, tokens: those to list. history: tokens so far, for the penalty.
    """
    seen = torch.tensor(list(history), dtype=torch.int64) if history else None
    before, after = logits.softmax(-1), probabilities(logits, params, seen)
    left = after > 0
    return Ranking(
        texts=tuple(texts),
        before=tuple(before[list(tokens)].tolist()),
        after=tuple(after[list(tokens)].tolist()),
        kept=tuple(left[list(tokens)].tolist()),
        penalised=tuple(token in set(history) for token in tokens),
        survivors=int(left.sum()),
        survivors_share=float(before[left].sum()),
        vocabulary=len(logits),
    )


def ranking_figure(ranking: Ranking, title: str) -> go.Figure:
    """Pairs of bars, before and after; a cut token's bar is crossed out by its pattern and named "cut"."""
    made = theme.figure(title, x="probability (%)", height=140 + 22 * len(ranking.texts))
    places = list(range(len(ranking.texts)))[::-1]  # best on top
    made.add_bar(
        x=[value * 100 for value in ranking.after],
        y=places,
        orientation="h",
        name="after: what is drawn from",
        marker={"color": theme.BLUE, "pattern": {"shape": "/", "solidity": 0.15}},
        text=[
            f"{value:.1%}" if kept else "cut" for value, kept in zip(ranking.after, ranking.kept, strict=True)
        ],
        textposition="outside",
        cliponaxis=False,
        hovertemplate="after: %{x:.2f} %<extra></extra>",
    )
    made.add_bar(
        x=[value * 100 for value in ranking.before],
        y=places,
        orientation="h",
        name="before: the model's own (temperature 1)",
        marker={
            "color": theme.GREY,
            "pattern": {"shape": ["" if kept else "x" for kept in ranking.kept], "solidity": 0.45},
        },
        hovertemplate="before: %{x:.2f} %<extra></extra>",
    )
    largest = max((*ranking.before, *ranking.after))
    made.update_xaxes(range=[0, min(largest * 118, 112)])
    made.update_yaxes(tickvals=places, ticktext=_labels(ranking), ticks="", showgrid=False)
    made.update_layout(barmode="group", bargap=0.25, legend={"traceorder": "reversed"})
    return made


def _labels(ranking: Ranking) -> list[str]:
    marks = zip(ranking.texts, ranking.penalised, strict=True)
    return [quoted(text) + (" ↻" if seen else "") for text, seen in marks]


def ranking_finding(ranking: Ranking, params: SamplingParams) -> str:
    """One sentence: how many tokens are left, what they held, and the best one's chance."""
    left = "token is" if ranking.survivors == 1 else "tokens are"
    best = max(range(len(ranking.after)), key=lambda i: ranking.after[i])
    how = "greedy (temperature 0)" if params.greedy else f"temperature {significant(params.temperature)}"
    return (
        f"{how}: {ranking.survivors:,} of {ranking.vocabulary:,} {left} left, which held "
        f"{significant(ranking.survivors_share * 100)} % of the probability before. "
        f"‘{ranking.texts[best]}’ goes from "
        f"{significant(ranking.before[best] * 100)} % to {significant(ranking.after[best] * 100)} %."
    )
