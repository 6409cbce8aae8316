"""The fast twin of a layer on a GPU: the readable layer's logits, for every kind of model and of cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from labcore import cache as caches
from labcore.config import ModelConfig
from labcore.kernels import on_gpu
from labcore.model import Model, gpu_block
from labcore.model.transformer import Transformer
from labcore.quant.quantizing import quantize
from tests.kernels.interpreter import interpreted, needs_triton, without_gpu

SHAPE: dict[str, Any] = {
    "hidden_size": 40, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2,
    "head_dim": 16, "intermediate_size": 56, "vocab_size": 50, "max_position_embeddings": 64,
}  # fmt: skip
KINDS: list[dict[str, Any]] = [
    {},
    {"attention_bias": True, "o_proj_bias": True, "mlp_bias": True},
    {"qk_norm": True, "tie_word_embeddings": True},
]
CODED: dict[str, Any] = SHAPE | {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 52}  # whole runs
RECIPES = ["int8", "int4:group=32", "int4:group=32,symmetric=false,head=same", "int8:head=keep"]


def made(changes: dict[str, Any]) -> Transformer:
    """A random model whose norms and biases are not what they begin as."""
    torch.manual_seed(3)
    model = Transformer(ModelConfig(**(SHAPE | changes))).requires_grad_(False)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.3)
    return model


def check(changes: dict[str, Any], device: str, kind: str) -> None:
    """Raises AssertionError where twin and readable layers differ, for weights as they came."""
    compare(made(changes).to(device), kind)


def check_coded(changes: dict[str, Any], recipe: str, device: str) -> None:
    """The same for weights in codes."""
    transformer = made(CODED | changes).to(device)
    quantize(Model("small", transformer.config, transformer, None, random_weights=True), recipe)
    compare(transformer, "contiguous")


@torch.inference_mode()
def compare(model: Transformer, kind: str) -> None:
    """Raises AssertionError where a few decode steps of the twin and of the readable layers differ."""
    device, width = model.norm.weight.device, model.config.hidden_size
    model._native = False  # on a CPU it would come first
    assert gpu_block.takes(model, torch.zeros(1, 1, width, device=device))
    assert not gpu_block.takes(model, torch.zeros(2, 1, width, device=device))
    prompt = torch.randint(50, (1, 7), device=device)
    runs = []
    for fast in (True, False):
        model.fast = False  # several tokens of codes go through TF32 on a GPU
        cache = caches.create(kind, model.config, capacity=20, device=device)
        model(prompt, cache)
        model.fast = fast
        runs.append([model(torch.full((1, 1), token, device=device), cache) for token in (3, 9, 4)])
    torch.testing.assert_close(runs[0], runs[1], atol=2e-4, rtol=2e-4)


def interpret() -> None:
    """In Triton's interpreter: the twin takes part although nothing lies on a GPU."""
    gpu_block.on_gpu = lambda x: not on_gpu._plainly.get()
    for changes in KINDS:
        check(changes, "cpu", "contiguous")
    for recipe in RECIPES:
        check_coded(KINDS[1], recipe, "cpu")
    check_coded(KINDS[2], "int4:group=32,head=same", "cpu")


@pytest.mark.slow
@needs_triton
@without_gpu
def test_the_twin_in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABCORE_NATIVE", "0")  # C kernels round the prompt's tokens to codes
    code = "from tests.model import test_gpu_block as t\nt.interpret(); print('ok')"
    assert interpreted(code) == "ok"


@torch.inference_mode()
def test_layers_that_change_x_first_are_no_matter_for_the_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_block, "on_gpu", lambda x: True)
    transformer = made(CODED)
    quantize(Model("small", transformer.config, transformer, None, random_weights=True), "w8a8")
    assert not gpu_block.takes(transformer, torch.zeros(1, 1, 64))


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("changes", KINDS)
@pytest.mark.parametrize("kind", ["contiguous", "growing", "paged", "sinks:sinks=2,window=6"])
def test_the_twin_on_a_gpu(changes: dict[str, Any], kind: str) -> None:
    check(changes, "cuda", kind)


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("recipe", RECIPES)
def test_codes_on_a_gpu(recipe: str) -> None:
    for changes in KINDS:
        check_coded(changes, recipe, "cuda")
