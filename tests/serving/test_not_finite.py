"""A request whose logits are NaN ends with the reason; its neighbours get what they would have got alone."""

from __future__ import annotations

import asyncio
import copy
import math
from typing import Any

import pytest
import torch

import labcore
from labcore import kernels
from labcore.errors import NotFinite
from labcore.model import Model
from labcore.serving import LLMEngine, PromptLookup, RequestOutput
from labcore.serving.async_engine import AsyncLLMEngine
from labcore.serving.offline import answer
from labcore.serving.server.errors import as_api_error
from tests.serving.helpers import alone, request, small_model

BAD = 14


@pytest.fixture(scope="module", params=["native", "plain"])
def spoilt(request: pytest.FixtureRequest) -> Model:
    """A model in which one token's embedding is NaN, on both paths of a CPU; its greedy answers avoid it."""
    made = copy.deepcopy(small_model(eos=False))
    made.transformer.lm_head.weight[BAD] = 0.0  # some other logit is above 0
    made.transformer.embed_tokens.weight[BAD] = math.nan
    made.transformer.fast = request.param == "native"
    return made


GOOD = [(1, 2, 3), (5, 6, 7, 8, 9, 1, 2), (4,)]
WAYS: list[dict[str, Any]] = [
    {},
    {"overlap": True},
    {"token_budget": 4, "block_size": 4},
    {"policy": "static"},
    {"speculation": PromptLookup()},
    {"num_blocks": 12, "block_size": 4, "prefix_caching": False},
]


def played(engine: LLMEngine) -> dict[str, list[RequestOutput]]:
    found: dict[str, list[RequestOutput]] = {}
    while engine.has_work:
        for output in engine.step():
            found.setdefault(output.id, []).append(output)
    return found


@pytest.mark.parametrize("way", WAYS, ids=" ".join)
def test_others_go_on(spoilt: Model, way: dict[str, Any]) -> None:
    engine = LLMEngine(spoilt, **({"num_blocks": 32} | way))
    good = [request(f"good-{i}", tokens, new=9) for i, tokens in enumerate(GOOD)]
    wanted = {one.id: alone(spoilt, one).tokens for one in good}
    assert not any(BAD in tokens for tokens in wanted.values())
    for round_ in range(2):  # the second one works in blocks that the first left NaN in
        bad = [request(f"bad-{i}", (1, 2, BAD, 3, 4, 5)[: 6 - i], new=9) for i in range(2)]
        for one in (bad[0], *good, bad[1]):
            engine.add(one)
        found = played(engine)
        for one in bad:
            last = found[one.id][-1]
            assert (last.finish_reason, last.tokens) == ("abort", ())
            assert isinstance(last.error, NotFinite)
        for one in good:
            assert [token for output in found[one.id] for token in output.tokens] == wanted[one.id], round_
            assert all(output.error is None for output in found[one.id])
    assert not engine.has_work
    if engine.blocks.tree is None:
        assert engine.blocks.in_use == 0


def test_offline_answers_raise_it(spoilt: Model) -> None:
    engine = LLMEngine(spoilt, num_blocks=32)
    with pytest.raises(NotFinite, match="no token can be chosen"):
        answer(engine, [[1, 2], [BAD]], max_new_tokens=4)
    assert not engine.has_work


def test_whoever_waits_for_it_gets_it_and_the_engine_lives(spoilt: Model) -> None:
    async def ask(engine: AsyncLLMEngine, id: str, tokens: tuple[int, ...]) -> list[int]:
        return [token async for one in engine.generate(request(id, tokens, new=5)) for token in one.tokens]

    async def play() -> None:
        with AsyncLLMEngine(LLMEngine(spoilt, num_blocks=32)) as engine:
            first, second = await asyncio.gather(
                ask(engine, "a", (BAD,)), ask(engine, "b", GOOD[0]), return_exceptions=True
            )
            assert isinstance(first, NotFinite)
            assert second == alone(spoilt, request("b", GOOD[0], new=5)).tokens
            assert engine.healthy
            assert engine.unfinished == 0
            assert as_api_error(first).status == 500

    asyncio.run(play())


def test_nan_behind_a_sequences_end_is_not_read() -> None:
    """Neither in the rest of its last block nor in block 0, which fills up short tables."""
    stream = torch.Generator().manual_seed(0)
    pool = torch.randn(2, 2, 6, 4, 8, generator=stream)
    q = torch.randn(2, 4, 1, 8, generator=stream)
    tables, lens = torch.tensor([[2, 3], [4, 0]], dtype=torch.int32), torch.tensor([7, 3], dtype=torch.int32)
    with kernels.plainly():
        wanted = kernels.paged_attention(q, pool, tables, lens)
        pool[:, :, 0] = pool[:, :, 3, 3] = pool[:, :, 4, 3] = math.nan
        assert torch.equal(kernels.paged_attention(q, pool, tables, lens), wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("way", [{"overlap": "auto"}, {"overlap": False}, {"token_budget": 4}], ids=str)
def test_on_a_gpu_no_token_is_fed_that_has_no_embedding(way: dict[str, Any]) -> None:
    """An index of -1 would end the CUDA context, and with it the process's every other request."""
    made = copy.deepcopy(small_model(eos=False))
    made.transformer.lm_head.weight[BAD] = 0.0
    made.transformer.embed_tokens.weight[BAD] = math.nan
    made.transformer.to("cuda")
    engine = LLMEngine(made, num_blocks=32, **way)
    for id, tokens in (("bad", (1, BAD)), ("good", GOOD[0])):
        engine.add(request(id, tokens, new=9))
    found = played(engine)
    torch.cuda.synchronize()
    assert isinstance(found["bad"][-1].error, NotFinite)
    assert sum(len(output.tokens) for output in found["good"]) == 9
    with pytest.raises(NotFinite):
        labcore.generate(made, [1, BAD])
