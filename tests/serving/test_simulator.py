"""The simulator: what a mixed step costs, the engine's own schedule, fleets, and published numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from labcore import catalog
from labcore.errors import CacheFull, ConfigError, OutOfMemory, PromptError, SamplingError
from labcore.generation.stopping import Stopping
from labcore.perf import Machine
from labcore.perf.costs import CacheTraffic, num_parameters, step_costs
from labcore.perf.predict import ideal_step, step_time
from labcore.perf.sizes import kv_bytes
from labcore.serving import Dynamic, LLMEngine, Request, Static, StepEvent
from labcore.serving.metrics import Slo, records_from_events, summarize
from labcore.serving.offline import requests_of
from labcore.serving.simulator import (
    Cluster,
    FittedCosts,
    Fleet,
    Numbers,
    Part,
    RooflineCost,
    Settings,
    SimulatedEngine,
    cache_blocks,
    capacity,
    fitted_costs,
    mixed_costs,
    parts_of,
    simulate,
)
from labcore.serving.workload import Arrival, make_workload
from labcore.simulate_cli import simulate as command
from tests.serving.helpers import VOCAB, prompt, small_model

LLAMA, A100 = catalog.architecture("llama-2-7b"), catalog.gpu("a100-80gb-sxm")
SHAPES = ("llama-2-7b", "qwen3-0.6b", "mixtral-8x7b", "deepseek-v2", "gpt2", "gemma-2-9b")
STEADY = FittedCosts(base_s=0.03)


def planned(id: str, tokens: Sequence[int], new: int, at_s: float = 0.0) -> Request:
    return Request(id, tuple(tokens), stopping=Stopping(new, ignore_eos=True), arrival_s=at_s)


def engine(cost: Any = STEADY, policy: Any = "continuous", **settings: Any) -> SimulatedEngine:
    return SimulatedEngine(cost, policy, **({"num_blocks": 1000, "max_model_len": 8192} | settings))


def told(events: Sequence[StepEvent]) -> list[Any]:
    """All of the steps but their times."""
    return [replace(event, start_s=0.0, seconds=0.0, schedule_s=0.0) for event in events]


class TestMixedCosts:
    @pytest.mark.parametrize("name", SHAPES)
    @pytest.mark.parametrize(("batch", "context", "new"), [(1, 300, 300), (7, 120, 1), (1, 90, 17)])
    def test_like_parts_cost_what_step_costs_says(
        self, name: str, batch: int, context: int, new: int
    ) -> None:
        config = catalog.architecture(name)
        mixed = mixed_costs(config, [Part(context - new, new)] * batch)
        whole = step_costs(config, batch, context, new, traffic=CacheTraffic(block_size=16))
        for field in ("flops", "kv_read_bytes", "kv_write_bytes", "positions"):
            assert getattr(mixed, field) == getattr(whole, field), field
        assert mixed.weight_bytes == pytest.approx(whole.weight_bytes, rel=1e-4)  # GPT-2's position vectors
        assert mixed.activation_bytes == pytest.approx(whole.activation_bytes, rel=1e-6)

    def test_weights_are_read_once_and_the_rest_adds_up(self) -> None:
        decoding = [Part(held, 1) for held in (10, 200, 3000)]
        part = Part(512, 256, draws=False)
        both, apart = mixed_costs(LLAMA, [*decoding, part]), [mixed_costs(LLAMA, [one]) for one in decoding]
        prefill = mixed_costs(LLAMA, [part])
        head = prefill.operation("lm_head")  # alone, it has a row of logits all the same
        assert both.flops == sum(one.flops for one in apart) + prefill.flops - head.flops
        for field in ("kv_read_bytes", "kv_write_bytes"):
            assert getattr(both, field) == sum(getattr(one, field) for one in (*apart, prefill))
        rows = 259 * LLAMA.hidden_size * 2  # of the embedding table
        assert both.weight_bytes == 2 * (num_parameters(LLAMA) - 32000 * LLAMA.hidden_size) + rows

    @pytest.mark.parametrize("name", SHAPES)
    def test_the_fast_way_takes_as_long(self, name: str) -> None:
        config = catalog.architecture(name)
        parts = [Part(40, 1), Part(900, 1), Part(0, 64), Part(64, 300, draws=False), Part(9, 1)]
        machine = Machine(
            "small", 10**12, 1e11, {"float16": 1e13}, by_rows={"float16": ((1, 1e11), (8, 1e12), (64, 5e12))}
        )
        cost = RooflineCost(config, machine, overhead_s=0.001)
        slow = step_time(mixed_costs(config, parts), machine, overhead_s=0.001).expected_s
        assert [cost.seconds(parts), cost.seconds(parts)] == pytest.approx([slow, slow], rel=1e-9)

    def test_tensor_parallelism_divides_the_work_and_adds_a_ring(self) -> None:
        parts = [Part(500, 1)] * 16
        alone = RooflineCost(LLAMA, A100).seconds(parts)
        four = RooflineCost(LLAMA, A100, tensor_parallel=4, link=300e9).seconds(parts)
        message = 2 * 32 * 16 * 4096 * 2
        assert four - alone / 4 == pytest.approx(2 * 3 / 4 * message / 300e9)

    def test_what_no_step_can_be(self) -> None:
        with pytest.raises(ConfigError, match="computes nothing"):
            mixed_costs(LLAMA, [])
        with pytest.raises(ConfigError, match="computes nothing"):
            mixed_costs(LLAMA, [Part(3, 0)])
        with pytest.raises(ConfigError, match="one device"):
            RooflineCost(LLAMA, A100, tensor_parallel=0)

    def test_the_pool_is_what_weights_leave(self) -> None:
        room = 0.9 * 80e9 - 2 * num_parameters(LLAMA)
        assert cache_blocks(LLAMA, A100) == int(room // (16 * 524288))
        assert cache_blocks(LLAMA, A100, Numbers(cache_bits=8)) == int(room // (8 * 524288))
        assert cache_blocks(LLAMA, A100, devices=2) > 2 * cache_blocks(LLAMA, A100)
        with pytest.raises(OutOfMemory, match="tensor_parallel"):
            cache_blocks(catalog.architecture("llama-3-70b"), A100)


WAYS: dict[str, dict[str, Any]] = {
    "continuous": {},
    "tiny budget": {"token_budget": 16},
    "whole prompts": {"chunked": False},
    "recomputed": {"num_blocks": 12},
    "static of three": {"policy": Static(3)},
    "dynamic": {"policy": Dynamic(4, 0.0)},
    "one by one": {"policy": "one-by-one"},
    "few at once": {"max_num_seqs": 3, "prefix_caching": False},
}


class TestAgainstTheEngine:
    def real(self, requests: Sequence[Request], **settings: Any) -> LLMEngine:
        made = LLMEngine(small_model(), **({"num_blocks": 200, "preemption": "recompute"} | settings))
        for request in requests:
            made.add(request)
        while made.has_work:
            made.step()
        return made

    @pytest.mark.parametrize("way", WAYS)
    def test_the_same_schedule_and_as_many_seconds(self, way: str) -> None:
        shared = prompt(20, seed=99)
        lengths = [(5, 9), (30, 12), (17, 1), (22, 30), (40, 7), (3, 20), (33, 3), (12, 25)]
        requests = [
            planned(f"r{index}", (shared if index % 2 else ()) + prompt(length // 2 + 1, index), new)
            for index, (length, new) in enumerate(lengths)
        ]
        settings = {"max_model_len": 64, "block_size": 8} | WAYS[way]
        self.real(requests[:2], **settings)  # the first steps of a process take longer
        real = self.real(requests, **settings)
        cost = fitted_costs(real.events)
        copy = engine(cost, **({"num_blocks": 200, "vocab_size": VOCAB} | settings))
        for request in requests:
            copy.add(request)
        while copy.has_work:
            copy.step()
        assert told(copy.events) == told(real.events)
        assert (way == "recomputed") == bool(copy.stats.preemptions)
        assert copy.stats == real.stats
        copy.blocks.check(copy.scheduler.running)
        measured = sum(event.seconds for event in real.events)
        assert copy.time.now == pytest.approx(sum(cost.seconds(parts_of(event)) for event in real.events))
        assert copy.time.now == pytest.approx(measured, rel=0.25)

    def test_a_fit_finds_the_costs_that_made_the_events(self) -> None:
        made = FittedCosts(2e-3, 3e-5, 4e-4, 7e-7)
        run = engine(made, token_budget=64)
        for arrival in make_workload(20, prompt="exp:90", output="exp:20", seed=3):
            run.add(requests_of([arrival])[0])
        while run.has_work:
            run.step()
        found = fitted_costs(run.events)
        for name in ("base_s", "prompt_token_s", "decode_row_s", "cached_token_s"):
            assert getattr(found, name) == pytest.approx(getattr(made, name), rel=1e-6)

    def test_no_cost_is_negative(self) -> None:
        made = engine(STEADY, "one-by-one")
        for index in range(3):
            made.add(planned(f"r{index}", range(4 + index), 8))
        while made.has_work:
            made.step()
        # a step gets shorter the more is cached: nothing that a cost can be
        events = [replace(event, seconds=1 - event.rows[0].start / 100) for event in made.events]
        found = fitted_costs(events)
        assert found.cached_token_s == 0
        assert min(found.base_s, found.prompt_token_s, found.decode_row_s) >= 0
        with pytest.raises(ConfigError, match="no steps"):
            fitted_costs([])


class TestSimulatedEngine:
    def test_the_clock_moves_by_what_steps_cost(self) -> None:
        run = engine(FittedCosts(base_s=1.0, prompt_token_s=0.5))
        run.add(planned("a", range(4), 3))
        outputs = [run.step() for _ in range(3)]
        assert [event.start_s for event in run.events] == [0.0, 3.0, 4.0]
        assert run.time.now == 5.0
        assert outputs[-1][0].finish_reason == "length"
        assert outputs[-1][0].num_output_tokens == 3
        assert not run.has_work
        assert run.step() == []
        assert run.idle_step

    def test_prefixes_are_found_by_their_tokens(self) -> None:
        run = engine(FittedCosts(prompt_token_s=1.0))
        for name, tokens in (("a", range(40)), ("b", range(40)), ("c", range(1, 41))):
            run.add(planned(name, tokens, 1))
            while run.has_work:
                output = run.step()
            assert output[0].num_cached_tokens == (32 if name == "b" else 0)
        assert run.time.now == 40 + 8 + 40

    def test_it_refuses_what_the_engine_would(self) -> None:
        run = engine(num_blocks=4, max_model_len=100, vocab_size=50)
        with pytest.raises(PromptError, match="empty"):
            run.add(planned("a", (), 1))
        with pytest.raises(PromptError, match="token 60"):
            run.add(planned("a", (60,), 1))
        with pytest.raises(CacheFull):
            run.add(planned("a", [1] * 60, 30))
        with pytest.raises(SamplingError, match="tokenizer"):
            run.add(Request("a", (1,), stopping=Stopping(2, stop="x")))
        with pytest.raises(ConfigError, match="max_model_len"):
            engine(max_model_len=1)

    def test_windowed_layers_let_go_of_their_blocks(self) -> None:
        gemma = catalog.architecture("gemma-3-27b")
        sizes: dict[str, Any] = {"num_blocks": 400, "max_model_len": 40_000, "token_budget": 8192}
        run = engine(config=gemma, **sizes)
        needed = -(-(10 * 20_000 + 52 * 1024) // (62 * 16))  # 255 blocks where 1,250 would hold it unwindowed
        for name in ("a", "b"):
            run.add(planned(name, range(20_000), 2))
            while run.has_work:
                output = run.step()
            assert max(event.blocks_used for event in run.events) == needed
            assert run.stats.blocks_used == 0
        assert 0 < output[0].num_cached_tokens <= needed * 16  # as far as its table reaches
        run.blocks.check([])
        with pytest.raises(CacheFull):
            engine(**sizes).add(planned("a", range(20_000), 1))

    def test_abort_frees_its_blocks(self) -> None:
        run = engine()
        run.add(planned("a", range(100), 50))
        run.step()
        assert run.stats.blocks_used == 7
        run.abort("a")
        assert run.stats.blocks_used == 0
        assert not run.has_work


class TestFleets:
    @pytest.mark.parametrize("fleet", [Fleet(3), Fleet(2, prefill=2), Fleet(3, router="round-robin")])
    @pytest.mark.parametrize("policy", ["continuous", "one-by-one", Static(4), Dynamic(4, 0.2)])
    def test_every_request_gets_its_tokens(self, fleet: Fleet, policy: Any) -> None:
        workload = make_workload(60, rate=30, prompt="exp:200", output="exp:40:1-200", seed=1)
        found = simulate(LLAMA, A100, workload, fleet=fleet, settings=Settings(policy, num_blocks=300))
        assert found.summary.completed == 60
        by_id = {record.id: record for record in found.records}
        for arrival in workload:
            record = by_id[arrival.id]
            assert (record.prompt_tokens, record.output_tokens) == (
                arrival.prompt_tokens, arrival.output_tokens,
            )  # fmt: skip
            assert list(record.token_times) == sorted(record.token_times)
            assert record.start_s < record.token_times[0]
        for steps in found.engines.values():
            assert all(before.end_s <= after.start_s + 1e-9 for before, after in pairwise(steps))
            assert steps[-1].blocks_used == 0

    def test_prefill_and_decode_stay_apart(self) -> None:
        workload = make_workload(40, rate=20, prompt="exp:300", output="exp:30", seed=2)
        found = simulate(LLAMA, A100, workload, fleet=Fleet(2, prefill=1, link=1e9))
        kinds = {
            name: {row.kind for event in steps for row in event.rows} for name, steps in found.engines.items()
        }
        assert kinds == {"prefill 0": {"prefill"}, "decode 0": {"decode"}, "decode 1": {"decode"}}
        lengths = {arrival.id: arrival for arrival in workload}
        assert {one.id for one in found.handovers} == {a.id for a in workload if a.output_tokens > 1}
        second = {record.id: record.token_times[1] for record in found.records if record.output_tokens > 1}
        for one in found.handovers:
            assert one.nbytes == kv_bytes(LLAMA, lengths[one.id].prompt_tokens)
            assert one.arrived_s == pytest.approx(one.sent_s + one.nbytes / 1e9)
            assert one.ready_s <= one.sent_s < one.arrived_s < second[one.id]
        assert all(one.arrived_s <= other.sent_s for one, other in pairwise(found.handovers))  # one link

    def test_a_preempted_hand_over_is_computed_again_where_it_decodes(self) -> None:
        requests = [planned(f"r{index}", [index + 1] * 60, 60) for index in range(4)]
        found = simulate(LLAMA, A100, requests, fleet=Fleet(1, prefill=1), settings=Settings(num_blocks=20))
        steps = found.engines["decode 0"]
        assert any(event.preempted for event in steps)
        assert [record.output_tokens for record in found.records] == [60] * 4

    def test_routers(self) -> None:
        long, short = planned("long", range(9), 200), [planned(f"s{i}", [i], 1, 1.0 + i) for i in range(4)]
        for router, first in (("least-loaded", 1), ("round-robin", 3)):
            engines = [engine(), engine()]
            Cluster(engines, router=router).play([long, *short])  # type: ignore[arg-type]
            seen = [{row.id for event in one.events for row in event.rows} for one in engines]
            assert seen[0] | seen[1] == {"long", "s0", "s1", "s2", "s3"}
            assert len(seen[0]) == first, router

    def test_what_no_fleet_can_be(self) -> None:
        with pytest.raises(ConfigError, match="at least one replica"):
            Fleet(0)
        with pytest.raises(ConfigError, match="router"):
            Fleet(router="random")  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="no requests"):
            simulate(LLAMA, A100, [])

    def test_the_price_is_that_of_all_devices_over_the_whole_time(self) -> None:
        found = simulate(LLAMA, A100, make_workload(10, output="fixed:50"), fleet=Fleet(2, tensor_parallel=2))
        assert found.usd_per_hour == pytest.approx(4 * 2.4984)
        hours = found.summary.duration_s / 3600
        assert found.usd_per_million == pytest.approx(4 * 2.4984 * hours / 500 * 1e6)
        assert found.to_dict()["fleet"]["gpus"] == 4
        free = simulate(LLAMA, replace(A100, usd_per_hour=None), make_workload(2))
        assert free.usd_per_million is None


class TestCapacity:
    def test_the_smallest_fleet_that_keeps_the_promise(self) -> None:
        workload = make_workload(80, rate=100, prompt="exp:200", output="fixed:60", seed=5)
        slo = Slo(ttft_s=0.2, tpot_s=0.0085)
        found = capacity(LLAMA, A100, workload, slo)
        assert found.gpus > 2
        assert found.usd_per_hour == pytest.approx(found.gpus * 2.4984)
        assert found.simulation.summary.attainment >= 0.9
        assert dict(found.tried)[found.fleet.replicas] == found.simulation.summary.attainment
        fewer = simulate(LLAMA, A100, workload, slo=slo, fleet=Fleet(found.fleet.replicas - 1))
        assert fewer.summary.attainment < 0.9

    def test_a_promise_that_nothing_keeps(self) -> None:
        with pytest.raises(ConfigError, match="faster machine"):
            capacity(LLAMA, A100, make_workload(5), Slo(tpot_s=0.001))
        with pytest.raises(ConfigError, match="share"):
            capacity(LLAMA, A100, make_workload(5), Slo(tpot_s=1), attainment=0)


class TestPublished:
    def test_a_long_prompt_stalls_the_others(self) -> None:
        """Llama-2-7B, A100: 2 P t / F is 177 ms, 26 steps of a sequence of 1024; attention comes on top."""
        napkin = 2 * num_parameters(LLAMA) * 4096 / A100.flops["float16"]
        assert napkin == pytest.approx(0.177, abs=0.0005)
        assert napkin / ideal_step(LLAMA, A100, 1, 1024) == pytest.approx(26, abs=0.5)
        waits = {}
        for chunked in (False, True):
            run = engine(RooflineCost(LLAMA, A100), chunked=chunked, prefix_caching=False)
            for index in range(8):
                run.add(planned(f"r{index}", range(100), 60))
            for _ in range(20):
                run.step()
            run.add(planned("long", [7] * 4096, 1, run.time.now))
            while run.has_work:
                run.step()
            records = records_from_events(run.events, {f"r{index}": 0.0 for index in range(8)})
            waits[chunked] = max(gap for record in records for gap in record.itl_s[1:])
            chunks = [row.new for event in run.events for row in event.rows if row.id == "long"]
            assert len(chunks) == (9 if chunked else 1)
        assert napkin < waits[False] < 1.3 * napkin
        assert waits[True] < 0.2 * waits[False]

    def test_littles_law(self) -> None:
        """4 requests/s that stay 0.2 s + 200 * 30 ms: 24.8 in flight."""
        cost = FittedCosts(base_s=0.03, prompt_token_s=0.17 / 100)
        workload = [Arrival(f"r{i}", i / 4, 100, 201, (i + 1,) * 100) for i in range(200)]
        found = simulate(LLAMA, A100, workload, fleet=Fleet(1, prefill=2, link=1e15), cost=cost)
        law = found.summary.little
        assert law is not None
        # a request waits up to a step until it may join those that decode
        assert 24.8 < law.in_flight_measured < 24.8 + 4 * 0.035
        assert law.in_flight_expected == pytest.approx(law.in_flight_measured, rel=0.01)

    def test_a_fixed_batch_is_as_long_as_its_longest(self) -> None:
        run = engine(policy=Static(4))
        for index, new in enumerate((2, 6, 3, 4)):
            run.add(planned(f"r{index}", [index], new))
        while run.has_work:
            run.step()
        places = sum(len(event.rows) for event in run.events)
        assert sum(event.drawn for event in run.events) / places == 0.625

    def test_policies_differ_by_lengths(self) -> None:
        """Exponential answers: continuous far ahead. Answers of one length: static is as fast."""
        for output, low, high in (("exp:100", 1.7, 4.0), ("fixed:100", 0.95, 1.05)):
            workload = make_workload(64, prompt="fixed:16", output=output, seed=4)
            rates = {}
            for policy in ("one-by-one", Static(8), "continuous"):
                settings = Settings(policy, max_num_seqs=8)
                found = simulate(LLAMA, A100, workload, settings=settings)
                rates[str(policy)] = found.summary.output_tokens_per_s
            one, static, continuous = rates.values()
            assert low < continuous / static < high
            assert continuous / one > 5

    def test_a_thousand_requests_on_eight_devices(self) -> None:
        workload = make_workload(1000, rate=50, prompt="exp:60", output="exp:30", seed=0)
        config, h100 = catalog.architecture("llama-3-8b"), catalog.gpu("h100-sxm")
        one = simulate(config, h100, workload, fleet=Fleet(8), slo=Slo(0.5, 0.05))
        again = simulate(config, h100, workload, fleet=Fleet(8), slo=Slo(0.5, 0.05))
        assert one.summary == again.summary
        assert one.summary.attainment == 1.0
        assert len(one.engines) == 8


class TestCommand:
    def run(self, *arguments: str) -> Any:
        app = typer.Typer()
        app.command()(command)
        return CliRunner().invoke(app, ["llama-3-8b", "--gpu", "h100-sxm", "--requests", "20", *arguments])

    def test_a_table(self) -> None:
        result = self.run("--gpus", "3", "--prefill", "1", "--rate", "10", "--ttft-ms", "500")
        assert result.exit_code == 0, result.output
        for word in ("TTFT", "TPOT", "E2E", "tok/s", "goodput", "$", "1 prefill + 2 decode"):
            assert word in result.output

    def test_capacity(self) -> None:
        result = self.run("--output", "fixed:20", "--tpot-ms", "20", "--capacity", "--json")
        assert result.exit_code == 0, result.output
        assert '"tried"' in result.output
        assert isinstance(self.run("--capacity").exception, ConfigError)

    def test_a_fleet_that_does_not_come_out(self) -> None:
        assert isinstance(self.run("--gpus", "3", "--tensor-parallel", "2").exception, ConfigError)
        assert isinstance(self.run("--gpus", "2", "--prefill", "2").exception, ConfigError)


def test_summaries_are_those_of_the_events() -> None:
    workload = make_workload(15, rate=50, prompt="exp:30", output="exp:10")
    found = simulate(LLAMA, A100, workload, slo=Slo(0.1, 0.02))
    due = {arrival.id: arrival.at_s for arrival in workload}
    assert found.summary == summarize(records_from_events(found.events, due), Slo(0.1, 0.02))
