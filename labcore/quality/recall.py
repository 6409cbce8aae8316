"""Whether the model still knows a fact of the story when it is asked, with only what the cache has kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from labcore.cache import CacheChoice
from labcore.model import Model
from labcore.quality.feeding import Feed, batches, encode


def recalled(
    model: Model,
    cache: CacheChoice,
    items: Sequence[Mapping[str, Any]],
    tick: Callable[[], None] = lambda: None,
) -> list[bool]:
    """Whether greedy decoding gives each item's whole answer.

    The story is read as a prompt; the question comes token by token, as from someone who asks later. Else a
    cache that forgets would not have forgotten yet. tick: called after every batch.
    """
    prompts = [encode(model, item["prompt"]) for item in items]
    answers = [_answer(model, item, len(prompt)) for item, prompt in zip(items, prompts, strict=True)]
    right = [True] * len(items)
    for picked in batches(prompts):
        questions = [_question_tokens(model, items[index]["prompt"]) for index in picked]
        wanted = [answers[index] for index in picked]
        steps = max(map(len, wanted))
        feed = Feed(model, [prompts[index] for index in picked], cache, extra=steps)
        story = feed.tokens.shape[1] - max(questions)
        *_, (_, logits) = feed.through(max(story, int(feed.padding.max()) + 1))
        for place in range(steps):
            chosen = logits.argmax(-1).tolist()
            for index, answer, token in zip(picked, wanted, chosen, strict=True):
                right[index] &= place >= len(answer) or answer[place] == token
            if place + 1 < steps:
                known = [answer[min(place, len(answer) - 1)] for answer in wanted]
                new = torch.tensor(known, device=model.device)[:, None]
                feed.tokens = torch.cat([feed.tokens, new], 1)
                logits = feed.step(new if feed.cache.kind != "none" else feed.tokens)
        tick()
    return right


def _answer(model: Model, item: Mapping[str, Any], start: int) -> list[int]:
    return encode(model, f"{item['prompt']} {item['answer']}")[start:]


def _question_tokens(model: Model, prompt: str) -> int:
    """Tokens of the prompt from its last question on."""
    return len(encode(model, prompt)) - len(encode(model, prompt[: prompt.rindex("\nQuestion:")]))
