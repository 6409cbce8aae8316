"""Lesson 7: methods, outliers and the three ways, on few texts and small shapes. No timing is judged."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import labcore
from labcore.lab import planted, shrunk
from labcore.lab import weight_methods as methods
from labcore.lab.figures import quantization as figures
from labcore.lab.planted import Curve, LayerInputs, Planted
from labcore.lab.shrunk import ProductTimes, Shrunk, ThreeWays
from labcore.lab.weight_methods import Methods
from labcore.lab.widgets import quantization as widgets
from labcore.model import Model
from labcore.quality.sensitivity import Sensitivity
from labcore.quant import QuantLinear
from tests.lab.conftest import tiny_model

TEXTS = methods.calibration_texts(8)


@pytest.fixture(scope="module")
def story() -> Model:
    return labcore.load("story", dtype="float32")


@pytest.fixture(scope="module")
def weighed(story: Model) -> Methods:
    return methods.weigh_methods(
        story,
        ("int8", "llm_int8", "int3", "gptq-int3", "awq-int3", "int4", "gptq-int4", "awq-int4"),
        stories=4,
        questions=0,
        calibration=TEXTS,
    )


@pytest.fixture(scope="module")
def twin(story: Model) -> Planted:
    return planted.plant(story)


@pytest.fixture(scope="module")
def inputs(story: Model, twin: Planted) -> LayerInputs:
    return planted.layer_inputs(story, twin.channels, TEXTS)


def test_recipes_are_weighed_on_copies(story: Model, weighed: Methods) -> None:
    assert not story.recipe
    assert not any(isinstance(layer, QuantLinear) for layer in story.transformer.modules())
    sizes = [run.quality.weight_bytes for run in (weighed.of("rtn", bits) for bits in (8, 4, 3))]
    assert sizes == sorted(sizes, reverse=True)
    assert weighed.full.divergence.value == pytest.approx(0, abs=1e-9)


def test_careful_rounding_wins_at_3_bits_and_the_finding_says_by_how_much(weighed: Methods) -> None:
    plain, gptq, awq = (weighed.of(name, 3) for name in ("rtn", "gptq", "awq"))
    assert plain.change.value > 5 * max(gptq.change.value, awq.change.value)
    told = methods.order_finding(weighed, 3)
    assert told.count("below that of rounding to nearest (outside the noise") == 2
    assert f"{plain.change.value:+.2%}" in weighed.finding()
    bits = weighed.of("llm_int8", 8).report.bits_per_weight
    assert f"LLM.int8() ends at {bits:.1f} bits" in weighed.finding()


def test_errors_are_of_single_layers_on_the_same_inputs(story: Model, weighed: Methods) -> None:
    run = weighed.of("rtn", 3)
    assert len(run.errors) == 25
    name = "layers.2.mlp.down_proj"
    one = methods.fresh(story)
    labcore.quantize(one, "int3", progress=False)
    x = methods.linear_inputs(story, methods.calibration_texts(2))[name]
    linear, layer = (m.transformer.get_submodule(name) for m in (story, one))
    assert isinstance(linear, nn.Linear)
    with torch.inference_mode():
        wanted = (layer.reference(x) - linear(x)).norm() / linear(x).norm()  # type: ignore[operator]
    assert run.errors[name] == pytest.approx(float(wanted), rel=1e-5)


def test_published_numbers_stand_beside_ours(weighed: Methods) -> None:
    rows = methods.published_methods(weighed)
    assert [row["published change"] for row in rows][:3] == ["+4.75%", "+4.02%", "+2.38%"]
    assert rows[3]["measured change"] == f"{weighed.of('rtn', 3).change.value:+.2%}"
    bars = figures.published_figure(weighed).data
    assert [bar.name for bar in bars] == ["Llama-2-7B, published", "this model, measured"]
    assert bars[1].y[3] == pytest.approx(100 * weighed.of("rtn", 3).change.value)


def test_the_methods_figure_has_a_line_a_method(weighed: Methods) -> None:
    traces = {trace.name: trace for trace in figures.methods_figure(weighed).data}
    assert set(traces) == {"round to nearest", "GPTQ", "AWQ", "LLM.int8()"}
    assert list(traces["GPTQ"].text) == ["3", "4"]
    assert traces["GPTQ"].y[0] == weighed.of("gptq", 3).quality.divergence.value


def test_methods_are_tabs_and_a_method_without_such_bits_says_so(weighed: Methods) -> None:
    explorer = widgets.make_methods(weighed)
    assert set(explorer.settings) == {"method", "bits"}
    view = widgets.methods_view(weighed, "gptq", 3)
    mean = sum(weighed.of("gptq", 3).errors.values()) / 25
    assert f"off by {mean:.2%} on average" in view.finding
    assert "round to nearest, 3 bits" in [trace.name for trace in view.figure.data]
    assert "with 8 bits only" in widgets.methods_view(weighed, "llm_int8", 3).finding
    assert widgets.methods_view(weighed, "rtn", 4).rows[0]["error of the output"].endswith("%")


def test_the_scan_tells_harm_apart_from_error() -> None:
    found = [Sensitivity("layers.0.mlp.down_proj", 0.2, 0.25), Sensitivity("lm_head", 0.002, 0.3)]
    told = methods.scan_finding(found, "int3")
    assert "differs 100 times: most from layers.0.mlp.down_proj, least from lm_head" in told
    figure = figures.sensitivity_figure(found, "int3")
    assert [trace.name for trace in figure.data] == ["down", "head"]
    assert methods.scan_rows(found)[0]["layer"] == "layers.0.mlp.down_proj"


def test_the_twin_is_the_same_function(story: Model, twin: Planted) -> None:
    assert twin.difference < 1e-5
    ratio = twin.model.transformer.layers[1].input_norm.weight / story.transformer.layers[1].input_norm.weight
    assert sorted(ratio.round().int().tolist())[-4:] == [100] * 4
    assert "4 of 256 channels are 100 times as large" in twin.finding()


def test_outliers_break_naive_rounding_and_are_saved(twin: Planted) -> None:
    found = methods.weigh_methods(
        twin.model,
        ("w8a8", "w8a8:activations=tensor", "smoothquant", "llm_int8"),
        stories=4,
        questions=0,
        calibration=TEXTS,
    )
    full = found.full.perplexity.value
    naive, tensor, smooth, apart = (run.quality.perplexity.value / full for run in found.runs)
    assert naive > 3
    assert tensor > naive
    assert max(smooth, apart) < 1.01
    assert "Naive W8A8 takes the perplexity to" in planted.outlier_finding(found)
    rows = planted.published_outliers(found)
    assert rows[1]["OPT-175B, published"] == "93,080.0"
    assert float(rows[1]["planted twin, measured"].replace(",", "")) == pytest.approx(naive * full, rel=0.01)
    assert f"{smooth:.3f} times" in planted.published_finding(found)
    assert planted.outlier_rows(found)[1]["activations"] == "8 bits per token"


def test_smoothquant_over_the_whole_twin_is_a_u(twin: Planted) -> None:
    curve = planted.alpha_sweep(twin, (0.0, 0.6, 1.0), stories=3, calibration=TEXTS)
    assert curve.is_u
    assert curve.finding().endswith("A U: both ends are worse.")


@pytest.mark.parametrize("layer", ["layers.1.attention.qkv_proj", "layers.3.mlp.gate_up_proj"])
def test_curves_of_a_layer_with_outliers_are_us(inputs: LayerInputs, layer: str) -> None:
    assert inputs.alpha_curve(layer, 30).is_u
    awq = inputs.power_curve(layer, 30)
    assert awq.best > 0
    assert awq.errors[awq.best] < 0.8 * awq.errors[0]
    assert len(inputs.names) == 12


def test_a_curve_s_error_is_that_of_the_layer(inputs: LayerInputs) -> None:
    layer = inputs.names[2]
    weight, x = inputs.enlarged(layer, 10)
    exact = x @ weight.T
    rounded = QuantLinear(labcore.quant.quantize_tensor(weight, labcore.quant.Format("int4", "group", 64)))
    wanted = (rounded.reference(x) - exact).norm() / exact.norm()
    assert inputs.power_curve(layer, 10).errors[0] == pytest.approx(float(wanted), rel=0.02)


def test_a_curve_without_a_u_says_so() -> None:
    flat = Curve("t", "alpha", "relative error of the output", (0.0, 0.5, 1.0), (0.1, 0.2, 0.3))
    assert flat.best == 0
    assert not flat.is_u
    assert "No U" in flat.finding()
    figure = figures.curve_figure(flat)
    assert list(figure.data[1].y) == [10.0]


def test_every_picture_of_the_outlier_explorer(inputs: LayerInputs) -> None:
    explorer = widgets.make_outliers(inputs)
    assert set(explorer.settings) == {"layer", "factor", "picture"}
    for picture in widgets.PICTURES:
        view = widgets.outlier_view(inputs, inputs.names[0], 100, picture)
        assert view.rows
        assert inputs.names[0] in view.figure.layout.title.text
    spread = {row["of"]: row["largest over middle channel"] for row in view.rows}
    assert spread["inputs, smoothed"] < spread["inputs"]
    assert spread["weights, smoothed"] > spread["weights"]


WAYS = ThreeWays(
    "m", 256,
    (
        Shrunk("full precision", 400, 0.0, 1.0, {1: 0.1, 8: 0.2}),
        Shrunk("int8:granularity=channel", 100, 0.01, 0.5, {1: 0.025, 8: 0.4}),
    ),
)  # fmt: skip


def test_three_ways_are_held_against_full_precision(weighed: Methods) -> None:
    assert WAYS.gain(1, "size") == 4
    assert WAYS.gain(1, "decode, batch 1") == 4
    assert WAYS.gain(1, "decode, batch 8") == 0.5
    assert WAYS.gain(1, "prefill") == 2
    told = shrunk.three_finding(WAYS, weighed)
    assert "4× smaller; decode 4× as fast at batch 1 and 0.5× at 8, prefill 2×" in told
    assert f"{weighed.of('rtn', 8).change.value:+.2%}" in told
    rows = shrunk.three_rows(WAYS, weighed)
    assert rows[0]["embedded model's perplexity"] == "–"
    assert rows[1]["decode, batch 8 (tok/s)"] == "20 (0.5×)"
    (bars,) = figures.three_ways_figure(WAYS).data
    assert list(bars.y) == [4, 4, 0.5, 2]


def test_ways_are_measured_on_a_model(weighed: Methods) -> None:
    found = shrunk.weigh_weights(
        tiny_model(), ("int8:group=16",), batches=(1, 2), prompt=50, new_tokens=2, repeats=1
    )
    full, int8 = found.ways
    assert full.error == 0
    assert 0 < int8.error < 0.1
    assert int8.nbytes < full.nbytes
    assert all(seconds > 0 for way in found.ways for seconds in (way.prefill_s, *way.decode_s.values()))
    assert shrunk.three_rows(found, weighed)[1]["embedded model's perplexity"] == "not measured"


def test_products_name_their_paths() -> None:
    found = shrunk.time_products(torch.device("cpu"), ("int8", "nf4:group=32"), tokens=(1, 4), repeats=5)
    assert [one.weights for one in found] == ["full precision", "int8", "nf4:group=32"]
    assert found[2].paths == {1: "reference", 4: "reference"}
    assert len(shrunk.product_rows(found)) == 3


def test_a_format_without_a_kernel_is_told() -> None:
    made = [
        ProductTimes("full precision", {1: 1.0, 8: 2.0}, {1: "torch", 8: "torch"}),
        ProductTimes("int8", {1: 0.25, 8: 4.0}, {1: "native", 8: "native"}),
        ProductTimes("nf4", {1: 8.0, 8: 9.0}, {1: "reference", 8: "reference"}),
    ]
    told = shrunk.product_finding(made, 64)
    assert "One token through 64 × 64, times as fast as full precision: int8 4×." in told
    assert "Slower at every number of tokens: nf4 (8× slower at one token)" in told
    assert list(figures.products_figure(made, 64).data[0].y) == [4, 0.5]


def test_the_cache_does_not_shrink_with_the_weights(story: Model) -> None:
    rows = shrunk.cache_rows(story, ("int4",), ("contiguous", "int8"), context=64)
    by_pair = {(row["weights"], row["cache"]): row for row in rows}
    full, narrow = by_pair["full precision", "contiguous"], by_pair["int4", "contiguous"]
    assert narrow["weight bytes"] < full["weight bytes"] / 6
    assert narrow["cache bytes at 64 tokens"] == full["cache bytes at 64 tokens"]
    assert by_pair["int4", "int8"]["cache bytes at 64 tokens"] < full["cache bytes at 64 tokens"] / 3
    assert all(row["tokens generated"] == 8 for row in rows)


def test_golden_steps() -> None:
    first = shrunk.golden_steps()[0]
    assert [first[f"{dtype} (ms)"] for dtype in shrunk.PAPER] == ["6.87", "3.57", "1.92"]
    assert first["int4 is faster by"] == "3.59×"
    assert first["weights smaller by"] == "4.00×"
