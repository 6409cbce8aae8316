"""Lesson 2's other pictures and sentences: the crossing, ways of decoding, golden probabilities."""

from __future__ import annotations

import pytest
import torch

from labcore import catalog, generate, logits
from labcore.errors import LessonError
from labcore.generation import SamplingParams
from labcore.lab import decoding, phases
from labcore.lab.exercises.lesson02 import crossing as exercise_crossing
from labcore.lab.exercises.loops import tiny_model
from labcore.lab.figures import crossing as pictures
from labcore.lab.widgets import crossing as explorer
from labcore.lab.widgets.napkin import THIS_MACHINE
from labcore.model import Model
from labcore.perf.predict import Machine, machine_from_gpu

LLAMA = catalog.architecture("llama-2-7b")
PROMPT = [5, 6, 7, 8]


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


def cross(peak: float = 1.25e14, bandwidth: float = 6e11) -> pictures.Crossing:
    return pictures.cross(LLAMA, peak, bandwidth, "float16", 2)


def test_one_token_waits_for_bytes_and_many_for_arithmetic() -> None:
    found = cross()
    assert [row["bound by"] for row in found.rows()][:: len(found.lengths) - 1] == ["bandwidth", "compute"]
    assert found.by_weights == pytest.approx(1.25e14 / 6e11)


def test_the_crossing_lies_where_both_times_are_equal() -> None:
    found = cross()
    assert found.at is not None
    right = next(i for i, n in enumerate(found.lengths) if n >= found.at)
    assert found.arithmetic_s[right - 1] < found.traffic_s[right - 1]
    assert found.arithmetic_s[right] >= found.traffic_s[right]
    # cache and activations are bytes too: it turns later than weights alone say
    assert found.at > found.by_weights


def test_a_machine_with_little_bandwidth_never_turns_and_says_so() -> None:
    found = cross(peak=1e18)
    assert found.at is None
    assert "bytes stay the longer part to 4,096 tokens" in pictures.crossing_finding(found, "x")
    assert len(pictures.crossing_figure(found, "x").data) == 3


def test_a_machine_with_little_arithmetic_turns_at_once() -> None:
    assert cross(peak=1e9).at == 1.0


def test_the_star_stands_on_the_bound() -> None:
    found = cross()
    star = pictures.crossing_figure(found, "x").data[-1]
    bound = [max(pair) * 1e3 for pair in zip(found.arithmetic_s, found.traffic_s, strict=True)]
    assert star.x[0] == pytest.approx(found.at)
    assert min(bound) < star.y[0] < max(bound)


def test_data_sheets_turn_where_the_exercise_says() -> None:
    rows = pictures.crossing_rows(["a10", "l4", "a100-80gb-sxm", "h100-sxm", "h200-sxm"])
    assert [row["turns at (tokens)"] for row in rows] == [208.3, 403.3, 153.0, 295.2, 206.0]
    gpu = catalog.gpu("a10")
    assert exercise_crossing(gpu.flops["float16"], gpu.bandwidth, 2) == pytest.approx(208.3, abs=0.05)


def test_explorer_moves_the_crossing() -> None:
    here = Machine("here", 1 << 34, 2e10, {"float32": 1e11})
    shapes = {"llama-2-7b": LLAMA}
    own = explorer.crossing_view(here, shapes, shape="llama-2-7b", machine=THIS_MACHINE, precision="float32")
    other = explorer.crossing_view(here, shapes, shape="llama-2-7b", machine="a10", precision="float16")
    assert "on here" in own.finding
    assert machine_from_gpu(catalog.gpu("a10")).name in other.finding
    assert own.rows != other.rows


def test_weights_alone_in_8_bits_halve_the_bytes_and_not_the_arithmetic() -> None:
    here, shapes = Machine("here", 1 << 34, 2e10, {"float32": 1e11}), {"llama-2-7b": LLAMA}
    half, narrow = (
        explorer.crossing_view(here, shapes, shape="llama-2-7b", machine="a100-80gb-sxm", precision=precision)
        for precision in ("float16", "int8")
    )
    for before, after in zip(half.rows, narrow.rows, strict=True):
        assert after["arithmetic (ms)"] == before["arithmetic (ms)"]
        assert after["bytes (ms)"] < before["bytes (ms)"]
    assert "it would turn at 153 tokens" in half.finding
    assert "it would turn at 76.5 tokens" in narrow.finding


def test_golden_probabilities() -> None:
    params = [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.5),
        SamplingParams(temperature=1.0, top_p=0.9),
        SamplingParams(temperature=2.0, top_p=0.9),
    ]
    rows = decoding.golden_rows(params)
    shown = [[row[f"logit {value}"] for value in (2, 1, 0)] for row in rows]
    assert shown[0] == ["0.665", "0.245", "0.090"]
    assert shown[1] == ["0.867", "0.117", "0.016"]
    assert [row["kept"] for row in rows] == [3, 3, 2, 3]


def test_draws_follow_the_computed_probabilities() -> None:
    rows = decoding.drawn_rows(SamplingParams(temperature=1.0, top_p=0.9, seed=3), draws=4000)
    drawn = [float(row["of 4,000 draws"]) for row in rows]
    computed = [float(row["computed"]) for row in rows]
    assert drawn == pytest.approx(computed, abs=0.03)  # four standard deviations of a share are below 0.03
    assert drawn[2] == 0
    assert sum(drawn) == pytest.approx(1)


def test_log_probability_is_the_sum_over_single_steps(model: Model) -> None:
    answer = generate(model, PROMPT, max_new_tokens=3, ignore_eos=True).tokens
    known, total = list(PROMPT), 0.0
    for token in answer:
        total += float(logits(model, known)[0, -1].log_softmax(-1)[token])
        known.append(token)
    assert decoding.log_probability(model, PROMPT, answer) == pytest.approx(total, abs=1e-3)


def test_ways_of_decoding_are_scored_and_compared(model: Model) -> None:
    ways = {"greedy": {}, "beam search": {"num_beams": 4}, "drawn": {"temperature": 2.0, "seed": 1}}
    rows = decoding.compare_decoding(model, PROMPT, ways, max_new_tokens=5)
    by_way = {row["way"]: row for row in rows}
    greedy = generate(model, PROMPT, max_new_tokens=5)
    assert by_way["greedy"]["log-probability"] == pytest.approx(
        decoding.log_probability(model, PROMPT, greedy.tokens), abs=0.01
    )
    assert all(row["tokens"] == 5 for row in rows)
    with pytest.raises(LessonError, match="name at least one"):
        decoding.compare_decoding(model, PROMPT, {})


@pytest.mark.parametrize(
    ("gain", "words"),
    [(0.2, "beam search found a text likelier than greedy's by 0.200"), (0.0, "no likelier text"),
     (-0.1, "greedy found a text likelier than beam search's by 0.100")],
)  # fmt: skip
def test_the_decoding_sentence_follows_the_numbers(gain: float, words: str) -> None:
    rows = [
        {"way": "greedy", "per token": -1.0, "ms": 10.0, "text": "a"},
        {"way": "beam search", "per token": -1.0 + gain, "ms": 25.0, "text": "b"},
        {"way": "drawn", "per token": -2.0, "ms": 10.0, "text": "c"},
    ]
    found = decoding.decoding_finding(rows)
    assert words in found
    assert "at 2.5× the time. 1 different text among" in found


def test_a_model_without_a_tokenizer_gets_a_prompt_of_ids(model: Model) -> None:
    prompt = phases.prompt_for(model, "one two three")
    assert prompt == [1, 2, 3]
    assert torch.isfinite(logits(model, prompt)).all()
