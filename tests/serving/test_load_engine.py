"""The load generator's records and the engine's own: of one run they must tell the same story."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import labcore
from labcore.generation.stopping import Stopping
from labcore.model import Model
from labcore.serving import LLMEngine, Request
from labcore.serving.load import Client, run_load
from labcore.serving.metrics import records_from_events, summarize
from labcore.serving.server import create_app, serving
from labcore.serving.workload import make_workload

WORKLOAD = make_workload(10, prompt="uniform:5-90", output="uniform:1-12", shared_prefix=20, seed=2)


@pytest.fixture(scope="module")
def story() -> Model:
    return labcore.load("story", device="cpu", dtype="float32")


@pytest.fixture
def engine(story: Model) -> Iterator[LLMEngine]:
    return LLMEngine(story, max_num_seqs=3, token_budget=32, num_blocks=64, preemption="recompute")


def test_records_from_the_real_engines_events(engine: LLMEngine) -> None:
    """Chunked prompts, prefix hits, a queue and a tiny pool: the events still tell every length."""
    arrivals = {}
    for arrival in WORKLOAD:
        arrivals[arrival.id] = engine.clock()
        engine.add(
            Request(arrival.id, arrival.prompt, stopping=Stopping(arrival.output_tokens, ignore_eos=True))
        )
    given: dict[str, int] = dict.fromkeys(arrivals, 0)
    while engine.has_work:
        for output in engine.step():
            given[output.id] += len(output.tokens)
    records = records_from_events(engine.events, arrivals)
    assert [(r.prompt_tokens, r.output_tokens, r.error) for r in records] == [
        (a.prompt_tokens, a.output_tokens, None) for a in WORKLOAD
    ]
    assert [r.output_tokens for r in records] == list(given.values())
    summary = summarize(records)
    assert summary.concurrency_peak == len(WORKLOAD)
    assert summary.output_tokens == sum(a.output_tokens for a in WORKLOAD)


def test_what_the_client_counts_is_what_the_engine_drew(engine: LLMEngine) -> None:
    with serving(create_app(engine)) as url:
        run = run_load(Client(url, timeout_s=60), WORKLOAD, users=4)
    assert run.dialect.ids
    assert run.dialect.ignore_eos
    assert sorted(
        (r.id, r.prompt_tokens, r.output_tokens, len(r.token_times), r.error) for r in run.records
    ) == sorted((a.id, a.prompt_tokens, a.output_tokens, a.output_tokens, None) for a in WORKLOAD)
    counted = sum(record.output_tokens for record in run.records)
    assert engine.stats.output_tokens == counted + 2  # two asked for to learn the dialect
    assert (engine.stats.running, engine.stats.waiting) == (0, 0)
