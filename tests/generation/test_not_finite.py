"""Logits that are NaN or infinite: a sentence, whichever way tokens are chosen, and never an empty answer."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

import labcore
from labcore.errors import NotFinite
from labcore.generation import PromptLookup
from labcore.generation.sampling import NO_TOKEN, Sampler, SamplingParams, best, draw
from labcore.model import Model

BAD = 7  # the token whose embedding is no number


@pytest.fixture(scope="module", params=[math.nan, math.inf])
def spoilt(request: pytest.FixtureRequest, model: Model) -> Model:
    """The tiny model, in which one token's embedding is NaN or infinite."""
    made = copy.deepcopy(model)
    made.transformer.embed_tokens.weight[BAD, 3] = request.param
    return made


WAYS: list[dict[str, Any]] = [
    {},
    {"trace": True},
    {"temperature": 0.8, "top_k": 5},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 1.0, "min_p": 0.1},
    {"repetition_penalty": 1.2},
    {"num_beams": 2},
    {"speculation": PromptLookup()},
    {"speculation": PromptLookup(), "temperature": 1.0},
    {"cache": "paged"},
]


@pytest.mark.parametrize("way", WAYS, ids=" ".join)
def test_generate_says_so(spoilt: Model, way: dict[str, Any]) -> None:
    with pytest.raises(
        NotFinite, match=r"logits of 'tiny' in float32 are NaN or infinite behind 0 tokens.+\.$"
    ):
        labcore.generate(spoilt, [1, 2, BAD, 1, 2], **way)
    with pytest.raises(NotFinite):
        labcore.generate(spoilt, [BAD], **way)


def test_a_batch_with_such_a_row_says_so(spoilt: Model) -> None:
    with pytest.raises(NotFinite):
        labcore.generate(spoilt, [[1, 2, 3], [1, BAD, 3]])


def test_a_prompt_without_that_token_has_its_answer(spoilt: Model, model: Model) -> None:
    wanted = labcore.generate(model, [1, 2, 3], max_new_tokens=4)
    if BAD not in wanted.tokens[:-1]:
        assert labcore.generate(spoilt, [1, 2, 3], max_new_tokens=4).tokens == wanted.tokens


def test_a_stream_ends_with_it(spoilt: Model) -> None:
    with pytest.raises(NotFinite, match="no token can be chosen"):
        list(labcore.generation.stream(spoilt, [BAD]))


def test_float16_names_the_dtypes_that_hold_more(model: Model) -> None:
    overflowing = copy.deepcopy(model)
    overflowing.transformer.to(torch.float16)
    overflowing.transformer.lm_head.weight.fill_(60_000.0)
    with pytest.raises(NotFinite, match="load the model with dtype='bfloat16' or 'float32'"):
        labcore.generate(overflowing, [1, 2, 3])


ROWS = torch.tensor(
    [[0.0, 2.0, 1.0], [0.0, math.nan, 1.0], [0.0, math.inf, 1.0], [-math.inf, 5.0, -math.inf]]
)


def test_only_rows_of_numbers_have_a_token() -> None:
    assert best(ROWS).tolist() == [1, NO_TOKEN, NO_TOKEN, 1]
    assert draw(ROWS, torch.full((4,), 0.5))[1:].tolist() == [NO_TOKEN, NO_TOKEN, 1]
    for params in (SamplingParams(), SamplingParams(temperature=1.0, top_k=2)):
        assert [token == NO_TOKEN for token in Sampler(params, 4)(ROWS)] == [False, True, True, False]


def test_the_largest_of_parts_is_no_number_either() -> None:
    from labcore.generation.sampling import PARTS, _best_of_parts

    logits = torch.randn(3, PARTS * 2)
    logits[1, 77] = math.nan
    top, chosen = _best_of_parts(logits)
    assert torch.isnan(top).tolist() == [False, True, False]
    assert chosen.tolist()[::2] == logits.argmax(-1).tolist()[::2]
