"""Ways to choose: greedy, drawn and beam-searched answers to one prompt, with the probability of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from labcore.errors import LessonError
from labcore.generation import Output, Sampler, SamplingParams
from labcore.generation.api import generate, logits
from labcore.lab.figures.sampling import probabilities
from labcore.model import Model

GOLDEN_LOGITS = (2.0, 1.0, 0.0)


def log_probability(model: Model, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """Sum of the log-probabilities that the model gives the answer's tokens, one forward pass over all."""
    scores = logits(model, [*prompt, *answer])[0].log_softmax(-1)
    start = len(prompt) - 1  # the logits at a position speak of the token after it
    places = torch.arange(start, start + len(answer), device=scores.device)
    return float(scores[places, torch.tensor(answer, device=scores.device)].sum())


def compare_decoding(
    model: Model, prompt: str, ways: Mapping[str, Mapping[str, Any]], *, max_new_tokens: int = 24
) -> list[dict[str, Any]]:
    """Answer `prompt` once for each way (name -> settings of `generate`), its text, probability and cost.

    Answers differ in length when one ends early, so the table also gives the mean per token.
    Raises LessonError when no way is named.
    """
    if not ways:
        raise LessonError("compare_decoding got no ways to compare; name at least one, such as greedy={}.")
    return [
        _row(model, name, generate(model, prompt, max_new_tokens=max_new_tokens, **way))
        for name, way in ways.items()
    ]


def _row(model: Model, name: str, out: Output) -> dict[str, Any]:
    total = log_probability(model, out.prompt_tokens, out.tokens)
    return {
        "way": name,
        "log-probability": round(total, 2),
        "per token": round(total / len(out.tokens), 3),
        "tokens": len(out.tokens),
        "ms": out.seconds * 1e3,
        "text": out.text,
    }


def decoding_finding(
    rows: Sequence[Mapping[str, Any]], greedy: str = "greedy", beam: str = "beam search"
) -> str:
    """Who found the likelier text, and what it cost. Rows as `compare_decoding` makes them."""
    named = {row["way"]: row for row in rows}
    one, many = named[greedy], named[beam]
    gain = many["per token"] - one["per token"]
    if abs(gain) < 5e-4:
        verdict = f"{beam} found no likelier text than {greedy} here"
    else:
        better, worse = (beam, greedy) if gain > 0 else (greedy, beam)
        verdict = f"{better} found a text likelier than {worse}'s by {abs(gain):.3f} nats per token"
    drawn = {row["text"] for row in rows if row["way"] not in (greedy, beam)}
    return (
        f"{verdict}, at {many['ms'] / one['ms']:.1f}× the time. "
        f"{len(drawn)} different {'text' if len(drawn) == 1 else 'texts'} among the drawn ones."
    )


def golden_rows(
    settings: Sequence[SamplingParams], values: Sequence[float] = GOLDEN_LOGITS
) -> list[dict[str, Any]]:
    """Probabilities of three (or more) logits under each setting, as the engine computes them."""
    rows = []
    for params in settings:
        chances = probabilities(torch.tensor(values), params)
        row: dict[str, Any] = {"temperature": f"{params.temperature:g}", "top-p": f"{params.top_p:g}"}
        row |= {
            f"logit {value:g}": f"{chance:.3f}"
            for value, chance in zip(values, chances.tolist(), strict=True)
        }
        rows.append(row | {"kept": int((chances > 0).sum())})
    return rows


def drawn_rows(
    params: SamplingParams, draws: int = 4000, values: Sequence[float] = GOLDEN_LOGITS
) -> list[dict[str, Any]]:
    """Draw that often from the same logits: computed probability beside the share that was really drawn."""
    row = torch.tensor([list(values)])
    expected = probabilities(row[0], params).tolist()
    sampler = Sampler(params, rows=1)
    counts = [0] * len(values)
    for _ in range(draws):
        counts[int(sampler(row))] += 1
    return [
        {"logit": f"{value:g}", "computed": f"{chance:.3f}", f"of {draws:,} draws": f"{count / draws:.3f}"}
        for value, chance, count in zip(values, expected, counts, strict=True)
    ]
