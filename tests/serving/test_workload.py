"""Workloads: one seed, one workload; lengths as asked; Poisson gaps; traces there and back."""

from __future__ import annotations

import json
import random
import statistics
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labcore.serving.workload import (
    LengthSpec,
    WorkloadError,
    make_workload,
    read_trace,
    retimed,
    write_trace,
)

BOUNDS = st.tuples(st.integers(1, 400), st.integers(0, 400)).map(lambda pair: (pair[0], sum(pair)))
SPECS = st.one_of(
    st.integers(1, 500).map(LengthSpec.fixed),
    BOUNDS.map(lambda bounds: LengthSpec.uniform(*bounds)),
    st.tuples(st.floats(0.5, 500), BOUNDS).map(lambda both: LengthSpec.exponential(both[0], *both[1])),
)


@given(
    n=st.integers(1, 20), rate=st.none() | st.floats(0.01, 100), prompt=SPECS, output=SPECS,
    prefix=st.integers(0, 40), vocab=st.integers(1, 5000), seed=st.integers(0, 2**31),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_a_seed_makes_one_workload_of_the_lengths_asked(
    n: int, rate: float | None, prompt: LengthSpec, output: LengthSpec, prefix: int, vocab: int, seed: int
) -> None:
    def make() -> object:
        return make_workload(
            n, rate=rate, prompt=prompt, output=output, shared_prefix=prefix, vocab_size=vocab, seed=seed
        )

    made = make()
    assert made == make()
    assert [arrival.id for arrival in made] == [f"r{index}" for index in range(n)]
    assert made[0].at_s == 0
    assert all(a.at_s <= b.at_s for a, b in pairwise(made))
    for arrival in made:
        assert len(arrival.prompt) == arrival.prompt_tokens
        assert prompt.low <= arrival.prompt_tokens - prefix <= prompt.high
        assert output.low <= arrival.output_tokens <= output.high
        assert arrival.prompt[:prefix] == made[0].prompt[:prefix]
        assert all(0 <= token < vocab for token in arrival.prompt)


def test_the_numbers_of_seed_0_are_the_same_on_every_machine() -> None:
    first, second = make_workload(2, rate=4, prompt="exp:200", output="uniform:64-256", seed=0)
    assert (first.prompt_tokens, first.output_tokens, first.prompt[:3]) == (74, 183, (341, 670, 68))
    assert (second.prompt_tokens, second.output_tokens, second.prompt[:3]) == (89, 97, (733, 110, 318))
    assert second.at_s == pytest.approx(0.06487491624812615, rel=1e-12)


def test_other_seeds_make_other_workloads() -> None:
    one, other = make_workload(8, rate=1, seed=1), make_workload(8, rate=1, seed=2)
    for name in ("at_s", "prompt_tokens", "output_tokens", "prompt"):
        assert [getattr(a, name) for a in one] != [getattr(a, name) for a in other]


def test_another_rate_stretches_the_same_gaps() -> None:
    slow, fast = make_workload(50, rate=1, seed=3), make_workload(50, rate=4, seed=3)
    assert [a.at_s for a in fast] == pytest.approx([a.at_s / 4 for a in slow])
    assert [(a.prompt, a.output_tokens) for a in fast] == [(a.prompt, a.output_tokens) for a in slow]


def test_a_prompt_seed_changes_the_tokens_alone() -> None:
    one = make_workload(30, rate=2, shared_prefix=5, seed=3)
    other = make_workload(30, rate=2, shared_prefix=5, seed=3, prompt_seed=4)
    assert [(a.at_s, a.prompt_tokens, a.output_tokens) for a in one] == [
        (a.at_s, a.prompt_tokens, a.output_tokens) for a in other
    ]
    assert one[0].prompt[:5] != other[0].prompt[:5]
    assert sum(a.prompt != b.prompt for a, b in zip(one, other, strict=True)) == 30


@pytest.mark.parametrize(
    ("text", "role", "mean"),
    [
        ("fixed:128", "prompt", 128),
        ("uniform:64-256", "prompt", 160),
        ("exp:200", "output", 200),
        ("sharegpt", "prompt", 161.31),
        ("sharegpt", "output", 337.99),
        ("alpaca", "prompt", 19.31),
        ("alpaca", "output", 58.45),
    ],
)
def test_the_mean_of_many_draws_is_the_mean(text: str, role: str, mean: float) -> None:
    spec, source = LengthSpec.parse(text, role), random.Random(0)  # type: ignore[arg-type]
    drawn = [spec.draw(source) for _ in range(40_000)]
    # five standard errors of an exponential mean, and half a token for lengths below 1 that become 1
    assert statistics.fmean(drawn) == pytest.approx(mean, rel=0.025, abs=0.5)
    assert spec.mean == mean


def test_an_exponential_length_has_the_tail_of_one() -> None:
    source = random.Random(1)
    drawn = [LengthSpec.exponential(100).draw(source) for _ in range(40_000)]
    for means, share in ((1, 0.3679), (2, 0.1353), (3, 0.0498)):
        assert sum(length > 100 * means for length in drawn) / 40_000 == pytest.approx(share, abs=0.01)


def test_the_published_means_explain_the_papers_own_ratios() -> None:
    """Kwon et al. 2023, section 6.1: prompts 8.4 times and answers 5.8 times as long as Alpaca's."""
    share, alpaca = (
        [LengthSpec.parse(name, role).mean for role in ("prompt", "output")]
        for name in ("sharegpt", "alpaca")
    )
    assert [round(a / b, 1) for a, b in zip(share, alpaca, strict=True)] == [8.4, 5.8]


def test_clipping_holds_and_leaves_the_rest_alone() -> None:
    free, clipped = LengthSpec.exponential(100), LengthSpec.exponential(100, 50, 150)
    one, other = random.Random(2), random.Random(2)
    for _ in range(500):
        assert clipped.draw(other) == min(max(free.draw(one), 50), 150)


def test_poisson_gaps_have_the_rates_mean_and_an_equal_deviation() -> None:
    made = make_workload(20_000, rate=4, prompt="fixed:1", output="fixed:1", seed=0)
    gaps = [b.at_s - a.at_s for a, b in pairwise(made)]
    assert statistics.fmean(gaps) == pytest.approx(0.25, rel=0.03)
    assert statistics.pstdev(gaps) == pytest.approx(0.25, rel=0.03)


def test_without_a_rate_all_come_at_once() -> None:
    assert {arrival.at_s for arrival in make_workload(9)} == {0.0}


@given(SPECS)
def test_a_specification_reads_back_from_its_text(spec: LengthSpec) -> None:
    assert LengthSpec.parse(str(spec), "prompt") == spec


@pytest.mark.parametrize(
    "text", ["", "fixed", "fixed:0", "fixed:x", "uniform:9", "uniform:9-3", "exp", "exp:0", "exp:nan",
             "exp:-3", "exp:9:5-2", "exp:9:1-0", "zipf:3", "sharegpt:1", "fixed:3:4", "0"],
)  # fmt: skip
def test_what_is_no_distribution_is_said(text: str) -> None:
    with pytest.raises(WorkloadError):
        LengthSpec.parse(text, "prompt")


def test_numbers_that_make_no_workload_are_said() -> None:
    for wrong in ({"n": 0}, {"n": 1, "rate": 0}, {"n": 1, "shared_prefix": -1}, {"n": 1, "vocab_size": 0}):
        with pytest.raises(WorkloadError, match="0|-1"):
            make_workload(**wrong)


def test_retiming_keeps_everything_but_the_times() -> None:
    made = make_workload(11, rate=3, seed=5)
    fast = retimed(made, 20)
    assert (fast[0].at_s, fast[-1].at_s) == (0, pytest.approx(10 / 20))
    assert [a.prompt for a in fast] == [a.prompt for a in made]
    with pytest.raises(WorkloadError, match="at once"):
        retimed(make_workload(4), 2)


def test_a_trace_is_read_as_it_was_written(tmp_path: Path) -> None:
    made, path = make_workload(12, rate=3, seed=5), tmp_path / "deep" / "trace.jsonl"
    write_trace(path, made)
    read = read_trace(path, seed=1)
    shapes = [[(a.at_s, a.prompt_tokens, a.output_tokens) for a in workload] for workload in (made, read)]
    assert shapes[0] == shapes[1]
    assert all(len(a.prompt) == a.prompt_tokens for a in read)
    assert read == read_trace(path, seed=1)
    assert len(read_trace(path, limit=3)) == 3
    assert {a.prompt[:4] for a in read_trace(path, shared_prefix=4)} == {
        read_trace(path, shared_prefix=4)[0].prompt[:4]
    }


def test_a_trace_is_put_in_order_and_starts_at_0(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    lines = [
        {"at_s": at, "prompt_tokens": size, "output_tokens": 1, "more": "ignored"}
        for at, size in ((9, 2), (7.5, 3))
    ]
    path.write_text("\n\n".join(json.dumps(line) for line in lines))
    assert [(a.at_s, a.prompt_tokens) for a in read_trace(path)] == [(0.0, 3), (1.5, 2)]


def test_requests_of_one_moment_stay_in_order(tmp_path: Path) -> None:
    made, path = make_workload(20, seed=4), tmp_path / "trace.jsonl"
    write_trace(path, made)
    assert [a.prompt_tokens for a in read_trace(path)] == [a.prompt_tokens for a in made]


@pytest.mark.parametrize(
    "line", ["{", "[]", "3", '{"at_s": 1}', '{"at_s": "x", "prompt_tokens": 1, "output_tokens": 1}',
             '{"at_s": 0, "prompt_tokens": 0, "output_tokens": 1}',
             '{"at_s": NaN, "prompt_tokens": 1, "output_tokens": 1}',
             '{"at_s": 0, "prompt_tokens": 1.5, "output_tokens": 1}'],
)  # fmt: skip
def test_a_line_that_is_no_request_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"at_s": 0, "prompt_tokens": 1, "output_tokens": 1}\n' + line)
    with pytest.raises(WorkloadError, match="Line 2"):
        read_trace(path)


def test_a_trace_that_is_missing_or_empty_is_said(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="cannot be read"):
        read_trace(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(WorkloadError, match="0 requests"):
        read_trace(tmp_path / "empty.jsonl")
