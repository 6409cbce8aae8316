"""Lesson 1's figures and findings, from streams and plans with known numbers."""

from __future__ import annotations

import json
import math

import pytest

import labcore
from labcore import catalog, lab
from labcore.errors import LessonError
from labcore.lab import display, introduction, live, theme
from labcore.lab.display import PLOTLY_MIME, figure_bundle
from labcore.lab.figures import intro, lab_map
from labcore.lab.live import BatchPoint, Reading, StreamMetrics, stream_metrics
from labcore.lab.session import Session
from labcore.perf.predict import Machine, machine_from_gpu, napkin

STEPS = [0.030, 0.010, 0.012, 0.008]


def reading(steps: list[float] | None = None, prompt: int = 16) -> Reading:
    steps = STEPS if steps is None else steps
    return Reading("tiny", prompt, list(range(len(steps))), "text", steps, "length")


def test_metrics_divide_the_time_after_the_first_token_by_the_gaps() -> None:
    m = stream_metrics(STEPS)
    assert (m.tokens, m.ttft_s) == (4, 0.030)
    assert m.tpot_s == pytest.approx(0.010)
    assert m.latency_s == pytest.approx(0.060)
    assert m.tokens_per_s == pytest.approx(4 / 0.060)
    assert stream_metrics([0.5]).tpot_s is None


def test_a_reading_of_the_engine_is_whole(session: Session) -> None:
    ids = live.prompt(session.model, 8)
    read = live.read(session.model, ids, max_new_tokens=6, ignore_eos=True)
    assert read.prompt_tokens == 8
    assert len(read.tokens) == len(read.step_seconds) == read.metrics.tokens == 6
    assert read.finish_reason == "length"
    assert read.row()["latency (ms)"] == pytest.approx(sum(read.step_seconds) * 1e3)
    with pytest.raises(LessonError, match="given no token yet"):
        _ = Reading("tiny", 8).metrics


def test_a_text_for_a_model_without_tokenizer_becomes_ids(session: Session) -> None:
    assert live.readable(session.model, "Once") == live.prompt(session.model, 16)
    assert live.readable(session.model, [1, 2]) == [1, 2]
    with pytest.raises(LessonError, match="has no tokenizer"):
        live.start_reading(session.model, "Once")
    with pytest.raises(LessonError, match="129 tokens does not fit"):
        live.prompt(session.model, 129)


def test_a_typical_run_takes_the_median_of_each_step(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = iter([reading([9.0, 9.0]), reading([1.0, 5.0]), reading([2.0, 4.0]), reading([3.0, 9.0])])
    monkeypatch.setattr(live, "read", lambda *_, **__: next(runs))
    assert live.median_reading(session.model, 8, 2, repeats=3).step_seconds == [2.0, 5.0]


def test_a_batch_counts_the_tokens_of_all(session: Session) -> None:
    point = live.sweep_batch(session.model, [3], prompt_length=4, new_tokens=5, repeats=2)[0]
    assert (point.batch, point.metrics.tokens) == (3, 15)
    assert point.metrics.tokens_per_s == pytest.approx(15 / point.metrics.latency_s)
    assert point.spread >= 0


def test_step_times_show_the_real_steps_in_ms() -> None:
    figure = intro.step_times(reading())
    prefill, decode, mean = figure.data
    assert list(prefill.y) == [30.0]
    assert list(decode.y) == pytest.approx([10.0, 12.0, 8.0])
    assert list(mean.y) == pytest.approx([10.0, 10.0])
    assert "(ms)" in figure.layout.yaxis.title.text
    assert figure.layout.height == theme.HEIGHT
    assert len(intro.step_times(reading([0.5])).data) == 2  # no TPOT of a single token


def test_two_clocks_mark_the_guess() -> None:
    figure = intro.two_clocks([reading(prompt=8), reading([0.3, 0.01], prompt=64)], guess=10.0)
    ttft, tpot, star = figure.data
    assert list(ttft.y) == pytest.approx([30.0, 300.0])
    assert list(tpot.y) == pytest.approx([10.0, 10.0])
    assert (star.x[0], star.y[0]) == (64, pytest.approx(100.0))
    assert len(intro.two_clocks([reading()]).data) == 2


def metrics(tokens_per_s: float, tpot_s: float) -> StreamMetrics:
    return StreamMetrics(32, 0.01, tpot_s, 1.0, tokens_per_s)


POINTS = [BatchPoint(1, metrics(100, 0.01), 1.0), BatchPoint(8, metrics(400, 0.02), 2.0)]


def test_batch_gain_shows_measured_beside_free() -> None:
    figure = intro.batch_gain([p.batch for p in POINTS], [p.metrics for p in POINTS], guess=2.0)
    free, measured, gap, star = figure.data
    assert list(free.y) == [100, 800]
    assert list(measured.y) == [100, 400]
    assert list(gap.y) == pytest.approx([10, 20])
    assert star.y[0] == 200
    assert introduction.batches_finding(POINTS) == (
        "Batch 1 → 8: 4× the tokens per second (100 → 400), while each user's TPOT grew 2×."
    )


def test_findings_state_the_identity_and_the_ratio() -> None:
    said = introduction.stream_finding(reading())
    assert "TTFT 30 ms + 3 × TPOT 10 ms = 60 ms, and the clock said 60 ms" in said
    assert "3× as long" in said
    assert "no TPOT" in introduction.stream_finding(reading([0.5]))
    both = introduction.two_clocks_finding([reading(prompt=8), reading([0.3, 0.01], prompt=64)])
    assert "TTFT 10× (30 ms → 300 ms), TPOT 1× (10 ms → 10 ms)" in both


def test_the_map_carries_the_numbers_of_the_run(session: Session) -> None:
    numbers = lab_map.MapNumbers.of(session.model, reading())
    assert numbers.kv_bytes == 2 * 2 * 2 * 8 * 4  # two tensors, two layers, two heads of 8, fp32
    figure = lab_map.lab_map(numbers)
    text = " ".join(note.text for note in figure.layout.annotations)
    for expected in ("input (1, 16)", "TTFT 30 ms", "TPOT 10 ms", "3 steps", "256 B a token", "lesson 8"):
        assert expected in text
    assert numbers.weight_bytes == session.model.weight_bytes
    assert len(lab.current().predictions) == 0


def test_the_a10_rows_are_the_known_ones() -> None:
    one, many = introduction.a10_rows()
    assert (one["TPOT (ms)"], one["tok/s"]) == ("22.9", "43.65")
    assert (many["TPOT (ms)"], many["tok/s"]) == ("36.8", "870.1")


def test_catalogue_rows_hold_exact_bytes() -> None:
    row = introduction.catalogue_rows(["llama-2-7b"])[0]
    assert (row["parameters"], row["cache per token (bytes)"]) == ("6,738,415,616", "524,288")


def test_the_floor_is_weights_and_cache_over_bandwidth(session: Session) -> None:
    machine = Machine("here", 10**9, 1e9, {"float32": 1e12}, measured=True)
    plan = introduction.own_napkin(session.model, machine, 18)
    kv = lab_map.MapNumbers.of(session.model, reading()).kv_bytes
    assert plan.tpot_s == pytest.approx((session.model.weight_bytes + 18 * kv) / 1e9)
    ratio = introduction.floor_ratio(session.model, machine, reading())
    assert ratio == pytest.approx(0.010 / plan.tpot_s)
    assert "Faster than memory allows" in introduction.floor_finding(plan, plan.tpot_s * 0.5)
    assert "close to the roof" in introduction.floor_finding(plan, plan.tpot_s * 1.2)
    assert "many small operations" in introduction.floor_finding(plan, plan.tpot_s * 9)
    figure = intro.floor_and_measured("tiny", 0.001, 0.003, guess=2.0)
    assert [trace.x[0] for trace in figure.data] == [1.0, 3.0, 2.0]
    assert figure.layout.xaxis.range[1] > 3.0


def test_the_napkin_figure_says_when_it_does_not_fit() -> None:
    llama, a10 = catalog.architecture("llama-2-7b"), machine_from_gpu(catalog.gpu("a10"))
    fits, full = (intro.napkin(napkin(llama, a10, batch, 512), "title") for batch in (1, 64))
    assert "fits" in fits.layout.xaxis.title.text
    assert "DOES NOT FIT" in full.layout.xaxis.title.text
    assert fits.data[0].x[0] == pytest.approx(13.476831232)
    milliseconds = sum(bar.x[0] for bar in fits.data[2:])
    assert milliseconds == pytest.approx(napkin(llama, a10, 1, 512).tpot_s * 1e3)
    assert not math.isnan(milliseconds)


def test_a_figure_is_published_as_data_with_a_plain_text_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLOTLY_RENDERER", raising=False)
    bundle = figure_bundle(intro.step_times(reading()))
    assert bundle["text/plain"].startswith("[figure] Every step")
    assert sorted(bundle) == [PLOTLY_MIME, "text/plain"]
    assert json.loads(json.dumps(bundle)) == bundle


def test_an_exported_page_draws_by_itself_and_carries_the_code_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLOTLY_RENDERER", "plotly_mimetype+notebook")
    monkeypatch.setattr(display, "_drawing_code_sent", False)
    first, second = (figure_bundle(intro.step_times(reading()))["text/html"] for _ in range(2))
    assert "Plotly.newPlot" in first
    assert "Plotly.newPlot" in second
    assert len(first) > 1e6 > len(second)


def test_a_log_axis_is_labelled_with_plain_numbers() -> None:
    ticks = theme.log_ticks([3.0, 70.0, float("nan")])
    assert ticks["type"] == "log"
    assert ticks["ticktext"] == ["1", "2", "5", "10", "20", "50", "100", "200", "500"]


def test_trace_rows_follow_the_engine(session: Session) -> None:
    out = labcore.generate(session.model, [1, 2, 3], max_new_tokens=3, ignore_eos=True, trace=True)
    rows = introduction.trace_rows(out.trace)
    assert [row["input shape"] for row in rows] == ["(1, 3)", "(1, 1)", "(1, 1)"]
    assert [row["tokens in the cache after it"] for row in rows] == [3, 4, 5]
