"""Lesson 8's parts: lengths, chunks, prefixes, preemption, guesses, rates, explorers. No timing is judged."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from labcore.errors import LessonError
from labcore.lab import (
    serving_guesses,
    serving_lengths,
    serving_rates,
    serving_reuse,
    serving_runs,
    serving_spans,
    serving_stall,
)
from labcore.lab.figures import serving as figures
from labcore.lab.figures import serving_blocks as block_figures
from labcore.lab.figures import serving_gains as gains
from labcore.lab.serving_runs import PolicyRun
from labcore.lab.widgets import serving as widgets
from labcore.serving import LLMEngine
from labcore.serving.metrics import Slo
from tests.lab.serving_load import Ticking, busy_model, request, some


@pytest.fixture(scope="module")
def runs() -> dict[str, PolicyRun]:
    return serving_runs.run_policies(
        busy_model(), requests=some(), places=4, slo=Slo(0.2, 0.05), watch=Ticking()
    )


def test_constant_lengths_are_the_control() -> None:
    found = serving_lengths.compare_lengths(
        busy_model(), n=32, places=4, prompt=4, output=8, watch=Ticking()
    )
    assert found.gain("constant") == (1.0, 1.0)
    steps, seconds = found.gain("exponential")
    assert steps > 1.3
    assert seconds > 1.3
    assert found.theory("exponential") == pytest.approx(12 / 25)
    rows = found.rows()
    assert [row["in theory (%)"] for row in rows] == pytest.approx([48, 100, 100, 100])
    assert rows[2]["useful rows (%)"] == 100
    assert rows[0]["tokens"] == rows[1]["tokens"]
    assert "Constant lengths: 1× the steps" in found.finding()
    assert {len(one.prompt) for runs in found.runs.values() for one in runs["static"].requests} == {4}


def test_chunks_take_the_stall_away() -> None:
    found = serving_stall.chunk_stall(
        busy_model(), (16, 32), prompt=60, decodes=4, repeats=1, watch=Ticking()
    )
    whole, large, small = found.stalls
    assert [stall.name for stall in found.stalls] == ["whole", "a budget of 32", "a budget of 16"]
    assert [stall.chunks for stall in found.stalls] == [1, math.ceil(60 / 28), math.ceil(60 / 12)]
    # All steps last alike on this clock: whole, the prompt's step lies between two tokens; in chunks none.
    assert whole.worst_s - large.worst_s == pytest.approx(whole.before_s)
    assert large.worst_s == pytest.approx(small.worst_s)
    assert small.ttft_s > large.ttft_s > whole.ttft_s
    figure = figures.stall_figure(found)
    assert max(figure.data[0].y) == pytest.approx(whole.worst_s * 1e3)
    assert "A prompt of 60 tokens joins 4 who decode" in found.finding()
    assert [row["steps for it"] for row in found.rows()] == [1, 3, 5]
    with pytest.raises(LessonError, match="budgets must exceed the decodes"):
        serving_stall.chunk_stall(busy_model(), (4,), prompt=60, decodes=4)
    with pytest.raises(LessonError, match="holds 128 tokens"):
        serving_stall.chunk_stall(busy_model(), (16,), prompt=128, decodes=4)


def test_shared_prefixes_are_computed_once() -> None:
    found = serving_reuse.prefix_gain(busy_model(), shared=64, own=5, output=4, n=4, watch=Ticking())
    assert found.without.computed == found.without.asked == 4 * 69
    assert found.cached.hits == 3 * 64
    assert found.cached.computed == 4 * 69 - 3 * 64
    assert found.cached.answers == found.without.answers
    assert "192 of 276 prompt tokens were found, 84 computed" in found.finding()
    assert [row["found"] for row in found.rows()] == [0, 192]


@pytest.fixture(scope="module")
def story() -> serving_reuse.PreemptionStory:
    return serving_reuse.preemption_story(busy_model(), watch=Ticking())


def test_preemption_changes_no_token(story: serving_reuse.PreemptionStory) -> None:
    assert (story.num_blocks, story.needed) == (20, 32)
    assert story.same
    total = {way: sum(story.times(way, f"r{i}") for i in range(4)) for way in story.runs}
    assert min(total.values()) > 0
    assert sum(story.again("recompute", f"r{i}") for i in range(4)) > 0
    assert sum(story.again("swap", f"r{i}") for i in range(4)) == 0
    assert story.times("recompute", "r0") == 0, "who came first is never preempted"
    assert "gets alone" in story.finding()
    assert len(story.rows()) == 8
    assert all(row["same tokens as alone"] for row in story.rows())
    spoilt = replace(story, alone=story.alone | {"r1": (1, 2)})
    assert not spoilt.same
    assert "a bug" in spoilt.finding()


def test_preemptions_are_marked(story: serving_reuse.PreemptionStory) -> None:
    for way, name in (("recompute", "preempted"), ("swap", "preempted, blocks copied")):
        run = story.runs[way]
        marks = [trace for trace in figures.gantt_figure(run).data if trace.type == "scatter"]
        assert [trace.name for trace in marks] == [name]
        assert len(marks[0].x) == sum(len(event.preempted) for event in run.events)
        found = serving_spans.spans(run.events, run.arrivals)
        assert any(span.phase == serving_spans.AGAIN for span in found)


def test_holdings_are_the_pools(story: serving_reuse.PreemptionStory) -> None:
    run = story.runs["recompute"]
    found = serving_spans.holdings(run.events)
    for holding, event in zip(found, run.events, strict=True):
        assert holding.used == sum(len(blocks) for blocks in holding.blocks.values()) <= holding.total
        if not event.finished:
            assert holding.used == event.blocks_used
        assert not set(event.preempted) & set(holding.blocks)
    turning = serving_spans.turning_points(found)
    assert len(turning) < len(found)
    assert all(one.blocks != other.blocks for one, other in zip(turning, turning[1:], strict=False))
    figure = block_figures.block_figure(run, at=3)
    bars = [trace for trace in figure.data if trace.type == "bar"]
    assert [sum(heights) for heights in zip(*(bar.y for bar in bars), strict=True)] == [
        holding.used for holding in found
    ]
    assert figure.data[-1].y == (20, 20)


def test_a_fixed_batch_keeps_its_blocks(runs: dict[str, PolicyRun]) -> None:
    found = serving_spans.holdings(runs["static"].events)
    sizes = [len(holding.blocks) for holding in found]
    assert sizes == [len(event.rows) for event in runs["static"].events]


def test_shared_blocks_have_a_layer_of_their_own() -> None:
    engine = LLMEngine(busy_model(), block_size=4, num_blocks=40, clock=Ticking())
    for id in "abc":
        engine.add(replace(request(id, 10, 12), prompt=tuple(range(10)), arrival_s=None))
        engine.step()
    events = list(engine.events)
    holding = serving_spans.holdings(events)[-1]
    assert max(len(who) for who in holding.holders.values()) == 3
    assert "2 of them together" in holding.finding()
    figure = block_figures.map_figure(holding)
    counts = {trace.name: len(trace.x) for trace in figure.data}
    assert counts[block_figures.SHARED] == 2
    assert sum(counts.values()) == holding.total == 40
    stacked = block_figures.block_figure(events)
    assert next(bar for bar in stacked.data if bar.name == block_figures.SHARED).y[-1] == 2


def test_many_requests_are_drawn_in_all(runs: dict[str, PolicyRun]) -> None:
    figure = block_figures.block_figure(runs["continuous"])
    assert [trace.name for trace in figure.data][:1] == ["held by requests"]
    large = serving_spans.Holding(0, 100, {"a": (3, 99)})
    assert sum(len(trace.x) for trace in block_figures.map_figure(large).data) == 100


def test_a_perfect_draft_saves_all_it_can() -> None:
    model = busy_model()
    found = serving_guesses.speculation_gain(model, model, output=21, guesses=4, watch=Ticking())
    assert found.same
    lookup, draft = found.ways
    assert draft.name == "draft model tiny"
    assert draft.accepted == 1
    assert draft.tokens_per_check == pytest.approx(serving_guesses.expected_tokens(1.0, 4), rel=0.05)
    assert len(found.plain.events) == 4 * 21
    assert len(draft.run.events) == 4 * (1 + 4)  # the prompt's own token, then four steps of five
    assert 0 <= lookup.accepted <= 1
    assert [row["same tokens"] for row in found.rows()] == [True] * 3
    assert "100 % of the guesses right, 4.2× fewer steps" in found.finding()
    assert "No token changed" in found.finding()


def test_golden_expected_tokens() -> None:
    assert serving_guesses.expected_tokens(0.8, 4) == pytest.approx((1 - 0.8**5) / 0.2)
    assert serving_guesses.expected_tokens(0.0, 4) == 1
    assert serving_guesses.expected_tokens(1.0, 4) == 5


@pytest.fixture(scope="module")
def sweep() -> serving_rates.RateSweep:
    return serving_rates.sweep_rates(
        busy_model(), (0.5, 1.0, 4.0), ("static", "continuous"), n=16, places=4, prompt=4, output=8,
        watch=Ticking(),
    )  # fmt: skip


def test_rates_stretch_one_load(sweep: serving_rates.RateSweep) -> None:
    assert sweep.rates == pytest.approx([sweep.capacity * share for share in (0.5, 1.0, 4.0)])
    slow, _, fast = ([one.arrival_s for one in sweep.runs[rate]["static"].requests] for rate in sweep.rates)
    assert slow == pytest.approx([8 * at for at in fast if at is not None])
    late = [spread.p99 for rate in sweep.rates if (spread := sweep.runs[rate]["continuous"].summary.ttft)]
    assert late[0] < late[2]
    assert len(sweep.rows()) == 6
    assert all(row["goodput (requests/s)"] <= row["answered (requests/s)"] + 1e-9 for row in sweep.rows())


def test_what_is_carried_ends_at_the_first_broken_promise(sweep: serving_rates.RateSweep) -> None:
    def promised(ttft: float) -> serving_rates.RateSweep:
        slo = Slo(ttft)
        runs = {
            rate: {name: replace(run, slo=slo) for name, run in runs.items()}
            for rate, runs in sweep.runs.items()
        }
        return replace(sweep, slo=slo, runs=runs)

    assert promised(1e-9).carried("continuous") is None
    assert promised(1e9).carried("static") == sweep.rates[-1]
    limits = [run["continuous"].summary.ttft for run in sweep.runs.values()]
    assert limits[0] is not None
    assert promised(limits[0].p99).carried("continuous") == sweep.rates[0]
    assert "static at none of them; continuous at none of them" in promised(1e-9).finding()
    assert "and" not in promised(1.0).promise()


def test_the_rate_figure_holds_the_summaries(sweep: serving_rates.RateSweep) -> None:
    figure = figures.rate_figure(sweep, at=sweep.rates[1])
    drawn = [trace for trace in figure.data if trace.name == "continuous"]
    found = [sweep.runs[rate]["continuous"].summary for rate in sweep.rates]
    assert list(drawn[0].y) == [one.requests_per_s for one in found]
    assert list(drawn[1].y) == [one.goodput for one in found]
    assert list(drawn[2].y) == [one.ttft.p99 * 1e3 for one in found if one.ttft]
    assert len(figure.layout.shapes) == 3


# Explorers


def test_explorers_show_every_setting(
    runs: dict[str, PolicyRun], story: serving_reuse.PreemptionStory, sweep: serving_rates.RateSweep
) -> None:
    policies = widgets.make_policy_explorer(runs)
    assert policies.settings == {"policy": "one-by-one"}
    ranges = {widgets.gantt_view(run, 2.0).figure.layout.xaxis.range for run in runs.values()}
    assert len(ranges) == 1
    maps = widgets.make_blocks(story.runs["swap"])
    fullest = max(holding.used for holding in serving_spans.holdings(story.runs["swap"].events))
    changes = serving_spans.turning_points(serving_spans.holdings(story.runs["swap"].events))
    assert changes[maps.settings["change"]].used == fullest
    for holding in serving_spans.holdings(story.runs["swap"].events):
        view = widgets.blocks_view(holding)
        assert f"Step {holding.step}" in view.finding
        assert len(view.rows) == len(holding.blocks)
    rates = widgets.make_rates(sweep)
    assert rates.settings == {"rate": sweep.rates[1]}
    for rate in sweep.rates:
        view = widgets.rate_view(sweep, rate)
        assert [row["policy"] for row in view.rows] == ["static", "continuous"]
    for explorer in (policies, maps, rates):
        explorer.draw()


def test_the_queue_is_told_in_numbers(runs: dict[str, PolicyRun]) -> None:
    rows = {row["policy"]: row for row in serving_spans.queue_rows(runs)}
    for name, run in runs.items():
        points = serving_spans.queue_over_time(run)
        assert rows[name]["longest queue"] == max(count for _, count in points)
        area = sum(
            count * (later - at) for (at, count), (later, _) in zip(points, points[1:], strict=False)
        )
        assert rows[name]["in it, mean"] == pytest.approx(area / run.summary.duration_s)
    assert f"continuous {rows['continuous']['longest queue']} " in serving_spans.queue_finding(runs)


def test_gains_are_drawn_from_the_runs() -> None:
    model = busy_model()
    prefix = serving_reuse.prefix_gain(model, shared=64, own=5, output=4, n=3, watch=Ticking())
    bars = gains.prefix_figure(prefix).data
    assert [list(bar.y) for bar in bars] == [
        pytest.approx([1e3 * ttft for ttft in run.ttft_s]) for run in (prefix.without, prefix.cached)
    ]
    guesses = serving_guesses.speculation_gain(model, model, output=21, guesses=4, watch=Ticking())
    steps, cost, speed = ([1 + y for y in bar.y] for bar in gains.guesses_figure(guesses).data)
    assert steps[1] == pytest.approx(84 / 20)
    assert cost[1] == pytest.approx(guesses.ways[1].step_cost(guesses.plain))
    assert speed == pytest.approx([row["times as fast"] for row in guesses.rows()[1:]])


def test_a_rate_that_is_known_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_rates, "capacity", lambda *_, **__: pytest.fail("measured again"))
    found = serving_rates.sweep_rates(
        busy_model(), (1.0,), ("continuous",), carries=50.0, n=8, places=4, prompt=4, output=8,
        watch=Ticking(),
    )
    assert found.rates == [50.0]
    assert "continuous answered" in found.finding()
