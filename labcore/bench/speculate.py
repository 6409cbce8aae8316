"""`labcore bench speculate`: answers with guesses beside the same answers without, by how many are guessed.

Where it gains: one request at a time, whose decode steps wait for weights, and a drafter that is mostly
right. Where it loses: wrong guesses, and batches, which keep the device busy anyway.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import labcore
from labcore.bench.interleave import Samples, interleave
from labcore.bench.usual import random_prompt
from labcore.errors import ConfigError
from labcore.generation.speculation import Drafter, DraftModel, PromptLookup
from labcore.model import Model
from labcore.quality.feeding import encode
from labcore.quality.heldout import stories
from labcore.serving import LLMEngine, answer

GUESSES = (1, 2, 4, 6, 8)
USUAL_GUESSES = 4  # where their number is not what is compared
PROMPT_TOKENS = 48
DRAFTS = {"story": "story-draft"}  # smaller models of the same vocabulary that come with the lab
SMALL_DRAFT = "int8"  # a draft may be rounded: what is wrong with a guess costs time and no truth
PLAIN = "labcore"
BLOCK = 16  # positions


class Run(NamedTuple):
    """All prompts answered once. Guesses: those that were checked, and those of them that were right."""

    seconds: float
    tokens: list[list[int]]
    drafted: int
    accepted: int


@dataclass(frozen=True)
class Row:
    """One way of guessing on one kind of work; medians of whole runs. guesses: at most, each time; 0: none.

    accepted: share of the checked guesses that were right. tokens_per_step: of one answer, in the mean.
    faster: how many times as fast as without guesses. same: whether the answers are those without.
    """

    work: str
    engine: str
    guesses: int
    seconds: float
    spread_s: float
    tokens_per_s: float
    accepted: float | None
    tokens_per_step: float
    faster: float
    same: bool


Play = Callable[[Drafter | None], Run]


def bench_speculate(
    model: Model,
    drafts: Sequence[Model] = (),
    *,
    guesses: Sequence[int] = GUESSES,
    prompts: int = 4,
    new_tokens: int = 96,
    temperature: float = 1.0,
    together: int = 8,
    repeats: int = 5,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Plain data of interleaved runs. drafts: models that guess, beside prompt look-up.

    Raises ConfigError for a draft with another vocabulary, and for no guesses.
    """
    if not guesses or min(guesses) < 1:
        raise ConfigError(f"{list(guesses)} tokens cannot be guessed; give numbers of at least 1.")
    asked = _prompts(model, max(prompts, together))
    alone, every = asked[:prompts], _ways(model, drafts, guesses)
    usual = _ways(model, drafts, [USUAL_GUESSES])
    drawn = f"one at a time, temperature {temperature:g}"
    works: dict[str, tuple[Play, list[_Way]]] = {
        "one at a time": (_one_by_one(model, alone, new_tokens, 0.0), every),
        drawn: (_one_by_one(model, alone, new_tokens, temperature), usual),
        f"{together} at once": (_batched(model, asked[:together], new_tokens), usual),
    }
    rows: list[Row] = []
    for work, (play, ways) in works.items():
        contestants = {way.label: partial(play, way.drafter) for way in ways}
        found = interleave(contestants, repeats=repeats, progress=partial(_tell, progress, work))
        rows += [_row(work, way, found) for way in ways]
    return {
        "model": model.name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "drafts": [draft.name for draft in drafts],
        "prompts": prompts,
        "new_tokens": new_tokens,
        "repeats": repeats,
        "rows": [asdict(row) for row in rows],
    }


def drafts_of(model: Model, name: str | None, recipe: str | None) -> list[Model]:
    """The draft as it is and, where there is a recipe, once more with its weights quantized; none without a
    name."""
    if name is None:
        return []
    made = [labcore.load(name, device=model.device, dtype=model.dtype)]
    if recipe is not None:
        small = labcore.load(name, device=model.device, dtype=model.dtype)
        labcore.quantize(small, recipe)
        small.name = f"{name} {recipe}"
        made.append(small)
    return made


def _tell(progress: Callable[[str], None], work: str, text: str) -> None:
    progress(f"{work}: {text}")


def _prompts(model: Model, count: int) -> list[list[int]]:
    """Beginnings of held-out stories, or random tokens for a model without a tokenizer."""
    if model.tokenizer is None:
        return [random_prompt(model, PROMPT_TOKENS, seed) for seed in range(count)]
    return [encode(model, story)[:PROMPT_TOKENS] for story in stories(count)]


class _Way(NamedTuple):
    """What guesses, and how many tokens at most."""

    engine: str
    guesses: int
    drafter: Drafter | None

    @property
    def label(self) -> str:
        return f"{self.engine}, {self.guesses} guesses"


def _ways(model: Model, drafts: Sequence[Model], guesses: Sequence[int]) -> list[_Way]:
    """None first."""
    made = [_Way(PLAIN, 0, None), _Way(f"{PLAIN} look-up", USUAL_GUESSES, PromptLookup(USUAL_GUESSES))]
    for draft in drafts:
        made += [_Way(f"{PLAIN} {draft.name}", count, DraftModel(draft, model, count)) for count in guesses]
    return made


def _one_by_one(model: Model, prompts: list[list[int]], new: int, temperature: float) -> Play:
    def run(drafter: Drafter | None) -> Run:
        how: dict[str, Any] = {"max_new_tokens": new, "ignore_eos": True, "temperature": temperature}
        start = time.perf_counter()
        outs = [labcore.generate(model, prompt, speculation=drafter, **how) for prompt in prompts]
        seconds = time.perf_counter() - start
        drafted, accepted = (sum(getattr(out, name) for out in outs) for name in ("drafted", "accepted"))
        return Run(seconds, [out.tokens for out in outs], drafted, accepted)

    return run


def _batched(model: Model, prompts: list[list[int]], new: int) -> Play:
    blocks = len(prompts) * -(-(PROMPT_TOKENS + new + USUAL_GUESSES) // BLOCK)

    def run(drafter: Drafter | None) -> Run:
        engine = LLMEngine(
            model, max_num_seqs=len(prompts), num_blocks=blocks, block_size=BLOCK, prefix_caching=False,
            speculation=drafter,
        )  # fmt: skip
        start = time.perf_counter()
        answers = answer(engine, prompts, max_new_tokens=new, ignore_eos=True)
        seconds, stats = time.perf_counter() - start, engine.stats
        return Run(seconds, [one.tokens for one in answers], stats.drafted, stats.accepted)

    return run


def _row(work: str, way: _Way, found: dict[str, Samples[Run]]) -> Row:
    mine, plain = found[way.label], next(iter(found.values()))
    seconds, first = mine.median(lambda run: run.seconds), mine.results[0]
    count = sum(map(len, first.tokens))
    return Row(
        work=work,
        engine=way.engine,
        guesses=way.guesses,
        seconds=seconds,
        spread_s=mine.spread(lambda run: run.seconds),
        tokens_per_s=count / seconds,
        accepted=first.accepted / first.drafted if first.drafted else None,
        tokens_per_step=count / (count - first.accepted),
        faster=plain.median(lambda run: run.seconds) / seconds,
        same=first.tokens == plain.results[0].tokens,
    )
