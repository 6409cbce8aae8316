"""What each policy keeps of a real text, and what that does to recall and perplexity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from labcore import quality
from labcore.cache import CacheSpec
from labcore.generation import TraceOptions, generate
from labcore.lab.units import si
from labcore.model import Model
from labcore.quality import Quality, heldout

Head = tuple[int, int]


@dataclass(frozen=True)
class Looks:
    """Where a text's last token looked under each cache. weights: (caches, positions), NaN: forgotten."""

    caches: tuple[str, ...]
    tokens: tuple[str, ...]
    weights: Tensor
    answers: tuple[str, ...]
    wanted: str

    def rows(self) -> list[dict[str, Any]]:
        """What was kept and what was answered."""
        return [
            {
                "cache": cache,
                "positions it can see": int((~row.isnan()).sum()),
                "of": len(self.tokens),
                "answer": answer,
                "right": answer.strip().startswith(self.wanted),
            }
            for cache, row, answer in zip(self.caches, self.weights, self.answers, strict=True)
        ]


def look_back(model: Model, specs: Sequence[str], *, item: dict[str, Any], head: Head) -> Looks:
    """Answer one held-out question under each cache, and keep the attention of one head at the last step."""
    rows, answers = [], []
    tokens: tuple[str, ...] = ()
    for spec in specs:
        out = generate(
            model, item["prompt"], max_new_tokens=4, ignore_eos=True, cache=spec,
            trace=TraceOptions(attention=[head]),
        )  # fmt: skip
        assert out.trace is not None
        last = out.trace.steps[-1]
        seen = last.attention[head][-1]
        rows.append(torch.where(seen > 0, seen, torch.nan))
        answers.append(out.text)
        ids = [*out.prompt_tokens, *out.tokens][: last.context]
        tokens = tuple(model.tokenizer.token_text(token) for token in ids) if model.tokenizer else ()
    return Looks(tuple(specs), tokens, torch.stack(rows), tuple(answers), item["answer"])


def question_at(low: int, high: int, seed: int = 0) -> dict[str, Any]:
    """A held-out question whose fact lies between low and high tokens before the answer."""
    items = [item for item in heldout.questions(seed=seed) if low <= item["distance"] <= high]
    return items[seed % len(items)]


def retrieving_head(model: Model, item: dict[str, Any]) -> Head:
    """The head that looks most at one earlier token when it answers, the first ones apart."""
    out = generate(model, item["prompt"], max_new_tokens=1, trace=TraceOptions(attention="all"))
    assert out.trace is not None
    attention = out.trace.prefill.attention
    far = {head: float(weights[-1, 4:-48].max()) for head, weights in attention.items()}
    return max(far, key=lambda head: far[head])


def weigh(
    model: Model, specs: Sequence[str], *, stories: int, questions: int, seed: int = 0
) -> list[Quality]:
    """Bytes, perplexity and recall of the model under each cache, on the same texts and questions."""
    return quality.sweep(model, specs, stories=stories, questions=questions, seed=seed)


def quality_rows(found: Sequence[Quality]) -> list[dict[str, Any]]:
    """The exact numbers; Δ recall in points against the first, with the 95 % interval of the difference."""
    rows = []
    for one in found:
        gap = quality.difference(one, found[0])
        rows.append(
            {
                "cache": one.cache,
                "bytes of 512 tokens": si(one.nbytes, "B"),
                "in host memory": si(one.host_nbytes, "B") if one.host_nbytes else "–",
                "perplexity": one.perplexity.value,
                "recall (%)": one.recall.value * 100,
                "Δ recall (points)": f"{gap.value * 100:+.0f} [{gap.low * 100:+.0f}, {gap.high * 100:+.0f}]",
            }
        )
    return rows


def quality_finding(found: Sequence[Quality]) -> str:
    """The smallest cache that costs nothing measurable, and the cheapest of all."""
    plain = found[0]
    harmless = [one for one in found if quality.difference(one, plain).value >= -0.01 and not one.host_nbytes]
    best = min(harmless, key=lambda one: one.nbytes)
    least = min(found, key=lambda one: one.nbytes)
    return (
        f"With recall within a point of {plain.cache} ({plain.recall.value:.0%}, "
        f"{si(plain.nbytes, 'B')}) the smallest "
        f"is {best.cache}: {si(best.nbytes, 'B')}, {plain.nbytes / best.nbytes:.1f}× less. The "
        "smallest of all, "
        f"{least.cache}, holds {si(least.nbytes, 'B')} and recalls {least.recall.value:.0%}."
    )


def distance_rows(found: Sequence[Quality]) -> list[dict[str, Any]]:
    """Recall of each cache by the distance from the fact to the answer."""
    return [
        {"cache": one.cache}
        | {f"{distance} tokens (%)": one.by_distance[distance].value * 100 for distance in _distances(one)}
        for one in found
    ]


def _distances(one: Quality) -> list[str]:
    """The ranges of distances, nearest first."""
    return sorted(one.by_distance, key=lambda distance: int(distance.rstrip("+").split("-")[0]))


def distance_finding(found: Sequence[Quality]) -> str:
    """Where each policy's memory ends: the distance from which it recalls less than half."""
    told = []
    for one in found:
        end = next((distance for distance in _distances(one) if one.by_distance[distance].value < 0.5), None)
        told.append(f"{one.cache} {'nowhere' if end is None else f'at {end} tokens'}")
    return f"Where each policy's memory ends, that is, recalls less than half: {', '.join(told)}."


def claim_rows(found: Sequence[Quality]) -> list[dict[str, Any]]:
    """Three published claims, beside what this model did under the same cache."""
    claims = {
        "heavy_hitters:budget=0.2": "a budget of 20 % is enough",
        "sinks": "4 sinks and a window are enough for fluent text",
        "kivi2": "2 bits are enough with keys per channel",
    }
    rows = []
    for one in found:
        kind = CacheSpec.parse(one.cache).kind
        claim = claims.get(one.cache) or claims.get(kind)
        if claim:
            rows.append(
                {
                    "claim": claim,
                    "cache": one.cache,
                    "perplexity, everything kept": found[0].perplexity.value,
                    "perplexity here": one.perplexity.value,
                    "recall, everything kept (%)": found[0].recall.value * 100,
                    "recall here (%)": one.recall.value * 100,
                }
            )
    return rows
