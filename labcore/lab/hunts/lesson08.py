"""Hunts of lesson 8: a scheduler that starves a long prompt, and a prefix hit that leaves nothing to compute.

`_continue_running` and `adopt` are methods of Scheduler and BlockManager under plain names. The checks put
the suspect into a real engine of their own; labcore's classes stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from labcore.generation.stopping import Stopping
from labcore.lab.exercises.checking import Verdict, of_faults
from labcore.lab.exercises.loops import tiny_model
from labcore.lab.hunts.registry import planted
from labcore.serving import LLMEngine, Request, StepEvent
from labcore.serving.blocks import BlockManager
from labcore.serving.scheduler import Scheduler, _start
from labcore.serving.sequence import Plan, Row

_continue_running = Scheduler._continue_running
adopt = BlockManager.adopt
__all__ = ["Plan", "Row", "_continue_running", "_start", "adopt"]  # what the copies in the notebook name

MOST_STEPS = 200  # every load below is over in less than 60


@planted(
    "08.A",
    title="The prompt that never begins to end",
    target="labcore.lab.hunts.lesson08:_continue_running",
    bug=(("budget < 1:", "budget < sequence.pending:"),),
    minutes=7,
    hints=(
        "Look at the long prompt step by step: how many of its tokens are pending, how large is the budget, "
        "and when is it passed over?",
        "A prompt need not go whole. It is to be passed over only where not even one token of it can go.",
    ),
)
def _check_starving(suspect: Callable[..., Any]) -> Verdict:
    """Prompts of several lengths among others that decode: all end, and nobody's tokens are held up."""
    faults = []
    for prompt, decodes in ((12, 3), (20, 3), (40, 0), (40, 3)):
        if fault := _starved(suspect, prompt, decodes):
            faults.append(fault)
    return of_faults(faults, 4, "loads", "the long prompt goes in chunks, beside everybody's decode")


def _starved(suspect: Callable[..., Any], prompt: int, decodes: int, budget: int = 16) -> str:
    """What is wrong with one load under the suspect; "" for nothing."""
    engine = LLMEngine(tiny_model(), token_budget=budget, block_size=4, prefix_caching=False)
    _put(engine.scheduler, "_continue_running", suspect)
    for index in range(decodes):
        engine.add(_request(f"user {index}", range(index + 1, index + 3), 60))
    where = f"A prompt of {prompt} tokens beside {decodes} who decode, {budget} tokens a step"
    try:
        _run(engine, 2)
        engine.add(_request("long", range(prompt), 4))
        _run(engine, MOST_STEPS)
    except Exception as error:
        return f"{where}, ends in {type(error).__name__}: {error}."
    steps = [event for event in engine.events if any(row.id == "long" for row in event.rows)]
    computed = sum(row.new for event in steps for row in event.rows if row.id == "long")
    if engine.has_work:
        return (
            f"{where}: {MOST_STEPS} steps later {computed} of its {prompt} tokens are computed, and no step "
            "goes on with it."
        )
    return _held_up(where, list(engine.events), -(-prompt // (budget - decodes)), decodes)


def _held_up(where: str, events: Sequence[StepEvent], needed: int, decodes: int) -> str:
    """Whether the long prompt, or those who decode beside it, wait without need."""
    joined = next(at for at, event in enumerate(events) if any(id == "long" for id, _ in event.admitted))
    first = next(at for at, event in enumerate(events) if _drew(event, "long"))
    if first - joined + 1 > needed:
        return f"{where}: its first token takes {first - joined + 1} steps; {needed} chunks are enough."
    for at, event in enumerate(events[joined : first + 1], 1):
        decoding = sum(row.kind == "decode" for row in event.rows)
        if decoding < decodes:
            return f"{where}: in its step {at} only {decoding} of them get their token; they go first."
    return ""


def _drew(event: StepEvent, id: str) -> bool:
    return any(row.id == id and row.drawn for row in event.rows)


@planted(
    "08.B",
    title="Found, and lost for words",
    target="labcore.lab.hunts.lesson08:adopt",
    bug=(("sequence.tokens[:-1]", "sequence.tokens"),),
    minutes=6,
    hints=(
        "Ask twice for the same prompt. With blocks of 4, what is different about prompts of 8, 12 and 16 "
        "tokens?",
        "A prompt that is found whole leaves nothing to compute. Where would the logits of its last token, "
        "which choose the next one, come from?",
    ),
)
def _check_adopting(suspect: Callable[..., Any]) -> Verdict:
    """The same prompt twice, at several lengths: found as far as possible, answered alike."""
    lengths = (5, 7, 8, 11, 12, 16)
    faults = [fault for length in lengths if (fault := _misadopted(suspect, length))]
    return of_faults(faults, len(lengths), "prompts", "found again, with the last token computed each time")


def _misadopted(suspect: Callable[..., Any], length: int, size: int = 4) -> str:
    """What is wrong when a prompt of this length is asked for twice; "" for nothing."""
    engine = LLMEngine(tiny_model(), block_size=size)
    _put(engine.blocks, "adopt", suspect)
    answers: list[list[int]] = []
    where = f"A prompt of {length} tokens in blocks of {size}, asked for a second time"
    for name in ("first", "second"):
        engine.add(_request(name, range(1, length + 1), 6))
        try:
            answers.append(_run(engine, MOST_STEPS).get(name, []))
        except Exception as error:
            failed = f"{type(error).__name__}: {str(error).rstrip('.')}"
            return f"{where}, ends in {failed}. {_found(engine, name, length)}"
        if engine.has_work:
            return f"{where}: after {MOST_STEPS} steps it is not over. {_found(engine, name, length)}"
    hits = dict(hit for event in engine.events for hit in event.admitted)["second"]
    wanted = (length - 1) // size * size
    if hits != wanted:
        return f"{where}: {hits} tokens are found, and it should be {wanted}."
    if answers[0] != answers[1]:
        given = f"gets {answers[1]}; the first time it got {answers[0]}"
        return f"{where}, {given}. {_found(engine, name, length)}"
    return ""


def _found(engine: LLMEngine, name: str, length: int) -> str:
    if name == "first":
        return "That was the first time, when nothing could be found."
    hits = engine.stats.prefix_hits
    return f"Of its {length} tokens {hits} were found, so {length - hits} were left to compute."


# What both need


def _put(part: object, name: str, method: Callable[..., Any]) -> None:
    """Give one object the suspect for a method; its class stays as it is for everyone else."""
    part.__class__ = type("Suspect", (type(part),), {name: method})


def _request(id: str, tokens: Sequence[int], new: int) -> Request:
    return Request(id, tuple(tokens), stopping=Stopping(new, ignore_eos=True))


def _run(engine: LLMEngine, most: int) -> dict[str, list[int]]:
    """Step until nobody is left, `most` times at most: a suspect may never come to an end. Tokens by id."""
    found: dict[str, list[int]] = {}
    for _ in range(most):
        if not engine.has_work:
            break
        for output in engine.step():
            found.setdefault(output.id, []).extend(output.tokens)
    return found
