"""An engine on a thread of its own: hand-over, aborts, draining, and what its death tells to whom."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing

import pytest

from labcore.errors import CacheFull, PromptError
from labcore.generation.stopping import Stopping
from labcore.serving.async_engine import AsyncLLMEngine, EngineStopped
from labcore.serving.events import StepEvent
from labcore.serving.requests import Request, RequestOutput
from tests.serving.fakes_server import BLOCKS, CountingEngine

pytestmark = pytest.mark.timeout(20)


def request(id: str = "a", new: int = 5, prompt: Sequence[int] = (1,)) -> Request:
    return Request(id, tuple(prompt), stopping=Stopping(new))


async def tokens_of(engine: AsyncLLMEngine, one: Request) -> list[int]:
    return [token async for output in engine.generate(one) for token in output.tokens]


def run(work: Callable[[AsyncLLMEngine], Awaitable[None]], engine: CountingEngine) -> None:
    """Open an engine, work with it, close it; no thread may be left."""
    before = set(threading.enumerate())

    async def inside() -> None:
        with AsyncLLMEngine(engine) as opened:
            await work(opened)

    asyncio.run(asyncio.wait_for(inside(), 15))
    assert set(threading.enumerate()) == before


async def until(holds: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came true"
        await asyncio.sleep(0.002)


def test_outputs_come_in_order_and_the_last_says_so() -> None:
    async def work(engine: AsyncLLMEngine) -> None:
        outputs = [output async for output in engine.generate(request(new=4))]
        assert [output.tokens for output in outputs] == [(1,), (2,), (3,), (4,)]
        assert [output.finish_reason for output in outputs] == [None, None, None, "length"]
        assert engine.unfinished == 0

    run(work, CountingEngine())


def test_many_tasks_get_their_own_answers() -> None:
    async def work(engine: AsyncLLMEngine) -> None:
        asked = [tokens_of(engine, request(str(i), i + 1)) for i in range(20)]
        assert await asyncio.gather(*asked) == [list(range(1, i + 2)) for i in range(20)]

    run(work, CountingEngine(step_s=0.001))


def test_several_requests_share_one_stream() -> None:
    async def work(engine: AsyncLLMEngine) -> None:
        outputs = engine.generate_all([request("a", 2), request("b", 3)])
        counted = [(output.id, output.tokens[0]) async for output in outputs]
        assert sorted(counted) == [("a", 1), ("a", 2), ("b", 1), ("b", 2), ("b", 3)]

    run(work, CountingEngine())


def test_a_refused_request_leaves_none_of_its_neighbours_running() -> None:
    inner = CountingEngine()

    async def work(engine: AsyncLLMEngine) -> None:
        with pytest.raises(PromptError, match="empty"):
            await anext(engine.generate_all([request("a"), request("b", prompt=())]))
        assert inner.requests == {}
        many = [request(str(i)) for i in range(BLOCKS + 1)]
        with pytest.raises(CacheFull):
            await anext(engine.generate_all(many))
        assert inner.requests == {}
        assert await tokens_of(engine, request()) == [1, 2, 3, 4, 5]

    run(work, inner)


def test_an_id_in_use_is_refused_and_its_owner_undisturbed() -> None:
    async def work(engine: AsyncLLMEngine) -> None:
        async with aclosing(engine.generate(request("a", 8))) as first:
            await anext(first)
            with pytest.raises(ValueError, match="in use"):
                await anext(engine.generate(request("a")))
            assert [output.tokens async for output in first][-1] == (8,)

    run(work, CountingEngine(step_s=0.002))


def test_a_task_that_is_cancelled_frees_its_block_before_the_next_step() -> None:
    inner = CountingEngine(step_s=0.02)

    async def work(engine: AsyncLLMEngine) -> None:
        task = asyncio.create_task(tokens_of(engine, request(new=10_000)))
        await until(lambda: inner.steps >= 2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        steps = inner.steps
        await until(lambda: not inner.requests)
        assert inner.steps <= steps + 1
        assert inner.aborted == ["a"]

    run(work, inner)


def test_a_task_that_is_cancelled_before_its_request_was_taken_leaves_nothing() -> None:
    inner = CountingEngine(step_s=0.05)

    async def work(engine: AsyncLLMEngine) -> None:
        keeps_busy = asyncio.create_task(tokens_of(engine, request("busy", 4)))
        await until(lambda: "busy" in inner.requests)
        task = asyncio.create_task(tokens_of(engine, request("late", 10_000)))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await keeps_busy == [1, 2, 3, 4]
        assert engine.unfinished == 0
        assert inner.requests == {}

    run(work, inner)


def test_abort_tells_whoever_waits() -> None:
    async def work(engine: AsyncLLMEngine) -> None:
        async with aclosing(engine.generate(request(new=10_000))) as outputs:
            await anext(outputs)
            engine.abort("a")
            assert [output.finish_reason async for output in outputs][-1] == "abort"
        engine.abort("nobody")

    run(work, CountingEngine(step_s=0.002))


def test_draining_lets_the_running_finish_and_refuses_the_new() -> None:
    async def work(engine: AsyncLLMEngine) -> None:
        running = asyncio.create_task(tokens_of(engine, request(new=10)))
        await until(lambda: engine.unfinished == 1)
        draining = asyncio.create_task(engine.drain(5))
        await asyncio.sleep(0)
        assert not engine.accepting
        with pytest.raises(EngineStopped, match="shut down"):
            await anext(engine.generate(request("b")))
        assert await running == list(range(1, 11))
        assert await draining == 0

    run(work, CountingEngine(step_s=0.005))


@pytest.mark.parametrize("hurried", [False, True])
def test_draining_aborts_what_takes_too_long(hurried: bool) -> None:
    async def work(engine: AsyncLLMEngine) -> None:
        async def ask() -> str | None:
            return [output.finish_reason async for output in engine.generate(request(new=10_000))][-1]

        running = asyncio.create_task(ask())
        await until(lambda: engine.unfinished == 1)
        draining = asyncio.create_task(engine.drain(600 if hurried else 0.05))
        await asyncio.sleep(0.02)
        if hurried:
            engine.hurry()
        assert await draining == 1
        assert await running == "abort"
        assert engine.healthy

    run(work, CountingEngine(step_s=0.002))


@pytest.mark.filterwarnings("ignore")
def test_a_step_that_raises_is_told_to_everybody_at_once() -> None:
    inner = CountingEngine(step_s=0.001, fails_at=10)

    async def work(engine: AsyncLLMEngine) -> None:
        asked = [tokens_of(engine, request(str(i), 1_000)) for i in range(5)]
        for error in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(error, EngineStopped)
            assert "step 10" in str(error)
            assert "a cable came off" in str(error)
        assert not engine.healthy
        with pytest.raises(EngineStopped, match="a cable came off"):
            await anext(engine.generate(request()))
        assert await engine.drain(5) == 0
        with pytest.raises(EngineStopped):
            engine.start()

    run(work, inner)


def test_closing_tells_whoever_waits_and_frees_every_block() -> None:
    inner = CountingEngine(step_s=0.002)
    opened = AsyncLLMEngine(inner)
    opened.start()

    async def work() -> None:
        task = asyncio.create_task(tokens_of(opened, request(new=10_000)))
        await until(lambda: inner.steps > 2)
        await asyncio.to_thread(opened.close)
        with pytest.raises(EngineStopped, match="closed"):
            await task

    asyncio.run(work())
    assert inner.requests == {}
    assert not opened.healthy


def test_a_closed_engine_starts_again_in_another_loop() -> None:
    inner = CountingEngine()
    engine = AsyncLLMEngine(inner)
    with pytest.raises(EngineStopped, match="not been started"):
        asyncio.run(tokens_of(engine, request()))
    for _ in range(2):
        with engine:
            assert asyncio.run(tokens_of(engine, request())) == [1, 2, 3, 4, 5]


def test_a_loop_that_was_closed_leaves_nothing_behind() -> None:
    inner = CountingEngine(step_s=0.002)
    with AsyncLLMEngine(inner) as engine:
        loop = asyncio.new_event_loop()
        outputs = engine.generate(request(new=10_000))
        loop.run_until_complete(anext(outputs))
        loop.close()  # with its generator still open
        asyncio.run(until(lambda: not inner.requests))
        assert asyncio.run(tokens_of(engine, request("b", 3))) == [1, 2, 3]


def test_without_work_the_thread_sleeps() -> None:
    inner = CountingEngine()
    with AsyncLLMEngine(inner) as engine:
        asyncio.run(tokens_of(engine, request()))
        polls = inner.polls
        time.sleep(0.1)
        assert inner.polls == polls


def test_a_batch_that_waits_to_be_filled_does_not_spin() -> None:
    inner = CountingEngine(holds_back=True)

    async def work(engine: AsyncLLMEngine) -> None:
        task = asyncio.create_task(tokens_of(engine, request(new=2)))
        await until(lambda: inner.polls > 3)
        polls = inner.polls
        await asyncio.sleep(0.1)
        assert inner.polls - polls <= 110  # a look every millisecond; spinning would be tens of thousands
        inner.holds_back = False
        assert await task == [1, 2]

    run(work, inner)


def test_watchers_see_every_request_and_every_step() -> None:
    class Notes:
        def __init__(self) -> None:
            self.arrivals: list[float | None] = []
            self.seen: list[tuple[StepEvent | None, Sequence[RequestOutput]]] = []

        def arrived(self, one: Request) -> None:
            self.arrivals.append(one.arrival_s)

        def stepped(self, event: StepEvent | None, outputs: Sequence[RequestOutput]) -> None:
            self.seen.append((event, outputs))

    inner, notes = CountingEngine(), Notes()
    with AsyncLLMEngine(inner, [notes]) as engine:
        asyncio.run(tokens_of(engine, request(new=3)))
    assert [event.index for event, _ in notes.seen if event] == [0, 1, 2]
    assert [output.tokens for _, outputs in notes.seen for output in outputs] == [(1,), (2,), (3,)]
    assert len(notes.arrivals) == 1
    assert notes.arrivals[0] is not None


def test_forty_tasks_of_which_half_leave_at_random() -> None:
    inner, chance = CountingEngine(step_s=0.0005), random.Random(0)

    async def leave_early(engine: AsyncLLMEngine, id: str) -> None:
        task = asyncio.create_task(tokens_of(engine, request(id, 10_000)))
        await asyncio.sleep(chance.random() * 0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def work(engine: AsyncLLMEngine) -> None:
        leaving = [leave_early(engine, f"leaves {i}") for i in range(12)]
        staying = [tokens_of(engine, request(f"stays {i}", 40)) for i in range(20)]
        found = await asyncio.gather(*staying, *leaving)
        assert found[:20] == [list(range(1, 41))] * 20
        await until(lambda: not inner.requests)
        assert engine.unfinished == 0
        assert len(asyncio.all_tasks()) == 2  # this one, and the one that waits for it

    run(work, inner)


def test_a_process_that_forgets_to_close_ends_all_the_same() -> None:
    code = (
        "import asyncio\n"
        "from tests.serving.fakes_server import CountingEngine\n"
        "from labcore.serving.async_engine import AsyncLLMEngine\n"
        "from labcore.serving.requests import Request\n"
        "engine = AsyncLLMEngine(CountingEngine(step_s=0.01)); engine.start()\n"
        "asyncio.run(anext(engine.generate(Request('a', (1,)))))\n"
        "print('over')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=15)
    assert (done.returncode, done.stdout) == (0, "over\n"), done.stderr
