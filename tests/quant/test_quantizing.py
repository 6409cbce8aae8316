"""`labcore.quantize` on whole models: what it does, what it reports, and that it does all or nothing."""

from __future__ import annotations

import math

import pytest
import torch

import labcore
from labcore.errors import ConfigError
from labcore.model import Model
from labcore.quality import heldout
from labcore.quant import quantizing
from labcore.quant.calibration import Inputs, layer_by_layer
from labcore.quant.formats import Format
from labcore.quant.linear import QuantLinear
from labcore.quant.recipe import Recipe

RECIPES = (
    "int8", "int8:group=32", "int4", "int4:symmetric=false", "int3", "int2:group=16", "nf4", "fp8_e4m3",
    "fp8_e4m3:activations=token", "fp8_e5m2:granularity=tensor,activations=tensor",
    "fp8_e5m2:granularity=tensor", "w8a8", "w8a8:activations=tensor", "w8a8:activations=static", "llm_int8",
    "smoothquant", "smoothquant:activations=static,alpha=search", "gptq-int4", "gptq-int3:act_order=true",
    "awq-int4", "awq-int3:clip=false", "int4:head=same", "int4:head=keep",
)  # fmt: skip


def story() -> Model:
    return labcore.load("story", dtype="float32")


def perplexity(model: Model, texts: list[str]) -> float:
    losses = []
    for text in texts:
        ids = model.tokenizer.encode(text, add_bos=True)  # type: ignore[union-attr]
        logits = labcore.logits(model, [ids])[0, 15:-1]
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[16:]), reduction="none"))
    return math.exp(float(torch.cat(losses).mean()))


@pytest.mark.parametrize("text", RECIPES)
def test_every_recipe_gives_a_smaller_model_that_still_speaks(text: str) -> None:
    model = story()
    before = labcore.logits(model, [[1, 5, 9, 20, 7]])
    rows = [[1, *range(5, 200)], [1, *range(300, 500)]] if Recipe.parse(text).needs_calibration else None
    report = labcore.quantize(model, text, calibration=rows, progress=False)
    assert Recipe.parse(report.recipe) == Recipe.parse(text)
    assert model.recipe == report.recipe
    assert report.bytes_after == model.weight_bytes < report.bytes_before
    assert model.num_parameters == story().num_parameters
    assert len(report.layers) == 4 * 6 + (0 if "keep" in text else 1)
    assert all(0 < layer.weight_error < 1 for layer in report.layers)
    after = labcore.logits(model, [[1, 5, 9, 20, 7]])
    assert after.isfinite().all()
    if report.bits_per_weight > 7:
        limit = 0.3 if "e5m2" in text else 0.15  # two bits of mantissa
        assert (after - before).norm() < limit * before.norm()
    assert len(labcore.generate(model, "Tom has", max_new_tokens=5, ignore_eos=True).tokens) == 5


@pytest.mark.parametrize("text", RECIPES)
def test_a_label_is_read_back(text: str) -> None:
    recipe = Recipe.parse(text)
    assert Recipe.parse(recipe.label) == recipe
    assert Recipe.from_dict(recipe.to_dict()) == recipe


@pytest.mark.slow
def test_the_order_of_methods_on_held_out_stories() -> None:
    texts = heldout.stories(60)
    found = {"fp32": perplexity(story(), texts)}
    for text in ("int8", "int4", "awq-int4", "gptq-int4", "int3", "awq-int3", "gptq-int3"):
        model = story()
        labcore.quantize(model, text, progress=False)
        found[text] = perplexity(model, texts)
    assert found["int8"] == pytest.approx(found["fp32"], rel=0.005)
    for bits in ("int4", "int3"):
        for method in ("awq", "gptq"):
            assert found[f"{method}-{bits}"] < found[bits] * 0.999
    # at three bits the gap is far outside of the noise
    assert found["int3"] > 1.15 * max(found["awq-int3"], found["gptq-int3"])


def test_calibration_sees_what_quantized_layers_give_out() -> None:
    model = story()
    rows = [[1, 5, 9, 20, 7, 8], [1, 30, 31]]
    seen = dict(layer_by_layer(model.transformer, rows, hessians=True))
    assert list(seen) == list(range(model.config.num_hidden_layers))
    names = {"attention.qkv_proj", "attention.o_proj", "mlp.gate_up_proj", "mlp.down_proj"}
    assert all(set(inputs) == names for inputs in seen.values())
    first = seen[0]["attention.qkv_proj"]
    embedded = model.transformer.embed_tokens(torch.tensor(sum(rows, [])))
    wanted = model.transformer.layers[0].input_norm(embedded)  # type: ignore[operator,union-attr]
    torch.testing.assert_close(first.sample, wanted)
    torch.testing.assert_close(first.absmax, wanted.abs().amax(0))
    torch.testing.assert_close(first.mean_abs, wanted.abs().mean(0))
    assert first.hessian is not None
    torch.testing.assert_close(first.hessian.matrix(), 2 / 9 * wanted.T @ wanted, rtol=1e-4, atol=1e-4)


def test_a_sample_is_spread_over_all_inputs() -> None:
    seen = Inputs(1, 10_000, torch.device("cpu"), hessian=False)
    for start in range(0, 10_000, 300):
        seen.add(torch.arange(start, min(start + 300, 10_000), dtype=torch.float32)[:, None])
    assert torch.equal(seen.sample[:, 0], torch.arange(0, 10_000, 4, dtype=torch.float32))


@pytest.mark.parametrize(
    ("recipe", "calibration", "message"),
    [
        ("int5", None, "no recipe 'int5'"),
        ("gptq", [], "holds 0 tokens in 0 texts"),
        ("awq-int4", ["Tom has a red drum."], r"holds \d+ tokens in 1 texts; give at least 128"),
        ("gptq-int4", [[1, 2, 99_999]], "token 99999 does not exist"),
        ("int4:group=100", None, "Groups of 100 do not divide the 256 columns"),
        ("gptq-nf4", None, "nf4 is none"),
        ("smoothquant-int4", None, "go with int8 weights"),
        ("w8a8-fp8_e4m3", None, "w8a8 rounds activations to int8"),
        ("int4:activations=token", None, "these are int4"),
        ("fp8_e4m3:activations=static", None, "per token or per tensor"),
        ("smoothquant:alpha=2", None, "alpha is 2"),
        ("llm_int8:threshold=0", None, "threshold is 0"),
        ("int8:activations=row", None, "activations is 'row'"),
        ("int8:head=half", None, "head is 'half'"),
        ("int4:group", None, "states no value"),
        ("gptq:damping=much", None, "damping is 'much'"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_touched(
    recipe: str, calibration: list[str] | None, message: str
) -> None:
    model = story()
    before = {name: tensor.clone() for name, tensor in model.transformer.state_dict().items()}
    with pytest.raises(ConfigError, match=message):
        labcore.quantize(model, recipe, calibration=calibration, progress=False)
    assert not any(isinstance(module, QuantLinear) for module in model.transformer.modules())
    after = model.transformer.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not model.recipe


def test_an_interrupt_in_the_middle_puts_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = story()
    wanted = labcore.generate(model, "Tom has", max_new_tokens=5).tokens
    made = quantizing.quantized_linear
    calls = 0

    def interrupted(*args: object, **kwargs: object) -> QuantLinear:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return made(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(quantizing, "quantized_linear", interrupted)
    with pytest.raises(KeyboardInterrupt):
        labcore.quantize(model, "gptq-int4", progress=False)
    assert not any(isinstance(module, QuantLinear) for module in model.transformer.modules())
    assert not any(module._forward_pre_hooks for module in model.transformer.modules())
    assert labcore.generate(model, "Tom has", max_new_tokens=5).tokens == wanted


def test_a_second_time_is_refused() -> None:
    model = story()
    labcore.quantize(model, "int8", progress=False)
    with pytest.raises(ConfigError, match="quantized already"):
        labcore.quantize(model, "int4", progress=False)


def test_models_without_texts_of_their_own() -> None:
    model = story()
    model.name = "mine"
    with pytest.raises(ConfigError, match="no calibration texts for 'mine'"):
        labcore.quantize(model, "gptq-int4", progress=False)
    model.tokenizer = None
    with pytest.raises(ConfigError, match="as token ids"):
        labcore.quantize(model, "gptq-int4", calibration=["a text"], progress=False)


def test_heads_as_recipes_say() -> None:
    formats = {head: Recipe.parse(f"int4:head={head}").head_format for head in ("auto", "same", "keep")}
    assert formats == {"auto": Format(), "same": Format("int4", "group", 64), "keep": None}
