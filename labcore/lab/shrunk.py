"""Fewer bytes, faster? Size, speed and error of quantized weights, all measured; and the cache beside."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

import labcore
from labcore import catalog, quality
from labcore.bench.interleave import interleave
from labcore.bench.quant import Times, ours
from labcore.catalog import GPU
from labcore.config import ModelConfig
from labcore.lab.units import seconds as as_time
from labcore.lab.units import si, significant
from labcore.lab.weight_methods import Methods, fresh
from labcore.model import Model
from labcore.perf.costs import kv_bytes, weight_bytes
from labcore.perf.predict import ideal_step
from labcore.perf.timing import measure
from labcore.quant import Format, QuantLinear, quantize, quantize_tensor
from labcore.quant.choice import side
from labcore.quant.quantizing import relative_error

RECIPES = ("int8", "int4")
FULL = "full precision"
PAPER = ("float16", "int8", "int4")
FORMATS = ("int8", "int4:group=32", "int3:group=32", "nf4:group=32")
TOKENS = (1, 8, 64, 512)
ERROR_TOKENS = 48  # of a prompt whose logits are compared


@dataclass(frozen=True)
class Shrunk:
    """One way of holding the weights. error: of the logits, relative. Seconds: medians of whole calls."""

    weights: str
    nbytes: int
    error: float
    prefill_s: float
    decode_s: dict[int, float]

    def times(self, other: Shrunk) -> dict[str, float]:
        """How many times smaller and faster than another, by what is measured."""
        return {
            "size": other.nbytes / self.nbytes,
            **{f"decode, batch {b}": other.decode_s[b] / s for b, s in self.decode_s.items()},
            "prefill": other.prefill_s / self.prefill_s,
        }


@dataclass(frozen=True)
class ThreeWays:
    """A model in several ways, measured in turns. The first is in full precision."""

    model: str
    prompt: int
    ways: tuple[Shrunk, ...]

    @property
    def full(self) -> Shrunk:
        """What the others are held against."""
        return self.ways[0]

    def gain(self, way: int, what: str) -> float:
        """Times smaller ("size") or faster ("decode, batch 1", "prefill") than full precision."""
        return self.ways[way].times(self.full)[what]

    def row(self, way: Shrunk) -> dict[str, Any]:
        """The exact numbers of one of them."""
        full = self.full
        decode = {
            f"decode, batch {batch} (tok/s)": f"{significant(batch / seconds)} "
            f"({significant(full.decode_s[batch] / seconds)}×)"
            for batch, seconds in way.decode_s.items()
        }
        prefill = (
            f"{significant(self.prompt / way.prefill_s)} ({significant(full.prefill_s / way.prefill_s)}×)"
        )
        return {
            "weights": way.weights,
            "size": si(way.nbytes, "B"),
            "smaller": f"{significant(way.times(full)['size'])}×",
            **decode,
            f"prefill of {self.prompt} (tok/s)": prefill,
            "error of these logits": f"{way.error:.1%}",
        }


def three_rows(found: ThreeWays, methods: Methods) -> list[dict[str, Any]]:
    """Size, speed and error of each way; the embedded model tells what the same recipe does to text."""
    rows = []
    for way in found.ways:
        rows.append(found.row(way) | {"embedded model's perplexity": _told(methods, way.weights)})
    return rows


def three_finding(found: ThreeWays, methods: Methods) -> str:
    """The same in sentences."""
    few, many = min(found.full.decode_s), max(found.full.decode_s)
    told = []
    for way in found.ways[1:]:
        times = way.times(found.full)
        told.append(
            f"{way.weights}: {significant(times['size'])}× smaller; decode "
            f"{significant(times[f'decode, batch {few}'])}× as fast at batch {few} and "
            f"{significant(times[f'decode, batch {many}'])}× at {many}, prefill "
            f"{significant(times['prefill'])}×; the embedded model's perplexity {_told(methods, way.weights)}"
        )
    return f"{'. '.join(told)}."


def _told(methods: Methods, weights: str) -> str:
    """The change of the embedded model's perplexity by the same recipe."""
    if weights == FULL:
        return "–"
    run = next((run for run in methods.runs if run.recipe.label == weights), None)
    return f"{run.change.value:+.2%}" if run else "not measured"


def weigh_weights(
    model: Model,
    recipes: Sequence[str] = RECIPES,
    *,
    batches: Sequence[int] = (1, 8, 32),
    prompt: int = 256,
    new_tokens: int = 12,
    repeats: int = 5,
) -> ThreeWays:
    """Quantize copies of the model and time prefill and decode of all in turns, as they are served."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (prompt,), generator=generator).tolist()
    exact = labcore.logits(model, tokens[:ERROR_TOKENS])
    models, errors = {FULL: model}, {FULL: 0.0}
    with tqdm(desc="quantizing", bar_format="{desc}", file=sys.stdout, leave=False) as bar:
        for recipe in recipes:
            bar.set_description_str(f"quantizing: {recipe}")
            one = fresh(model)
            name = quantize(one, recipe, progress=False).recipe
            models[name] = one
            errors[name] = relative_error(labcore.logits(one, tokens[:ERROR_TOKENS]), exact)
        contestants = {name: ours(one, tokens, new_tokens, batches) for name, one in models.items()}
        samples = interleave(contestants, repeats=repeats, progress=bar.set_description_str)
    ways = []
    for name, found in samples.items():
        decode = {batch: found.median(partial(_decode, batch)) for batch in batches}
        prefill = found.median(_prefill)
        ways.append(Shrunk(name, models[name].weight_bytes, errors[name], prefill, decode))
    return ThreeWays(model.name, prompt, tuple(ways))


def _prefill(times: Times) -> float:
    return times.prefill_s


def _decode(batch: int, times: Times) -> float:
    return times.decode_s[batch]


@dataclass(frozen=True)
class ProductTimes:
    """One square product in one way: seconds by number of tokens, and which path was taken for each."""

    weights: str
    seconds: dict[int, float]
    paths: dict[int, str]


@torch.inference_mode()
def time_products(
    device: torch.device,
    formats: Sequence[str] = FORMATS,
    *,
    tokens: Sequence[int] = TOKENS,
    repeats: int = 7,
) -> list[ProductTimes]:
    """A square matrix in full precision and in each format, by the path that this device takes."""
    width = side(device)
    weight = torch.randn(width, width, generator=torch.Generator().manual_seed(0)).to(device)
    plain = nn.Linear(width, width, bias=False, device="meta")
    plain.weight = nn.Parameter(weight, requires_grad=False)
    layers: dict[str, nn.Module] = {FULL: plain}
    layers |= {name: QuantLinear(quantize_tensor(weight, Format.parse(name))) for name in formats}
    found = []
    for name, layer in layers.items():
        seconds, paths = {}, {}
        for count in tokens:
            x = torch.randn(count, width, device=device)
            seconds[count] = measure(partial(layer, x), repeats=repeats, device=device).median_s
            paths[count] = layer.chosen(x)[0] if isinstance(layer, QuantLinear) else "torch"
        found.append(ProductTimes(name, seconds, paths))
    return found


def product_rows(found: Sequence[ProductTimes]) -> list[dict[str, Any]]:
    """Times over full precision's, with the path that was taken."""
    full = found[0]
    return [
        {
            "weights": one.weights,
            **{
                f"{n:,} token{'s' if n > 1 else ''}": f"{as_time(s)} ({significant(full.seconds[n] / s)}×, "
                f"{one.paths[n]})"
                for n, s in one.seconds.items()
            },
        }
        for one in found
    ]


def product_finding(found: Sequence[ProductTimes], width: int) -> str:
    """Which formats are faster than full precision at one token, and which never."""
    full, rest = found[0], found[1:]
    one = min(full.seconds)
    ahead = [way for way in rest if way.seconds[one] < full.seconds[one]]
    never = [way for way in rest if all(s > full.seconds[n] for n, s in way.seconds.items())]
    told = ", ".join(f"{way.weights} {significant(full.seconds[one] / way.seconds[one])}×" for way in ahead)
    slow = ", ".join(
        f"{way.weights} ({significant(way.seconds[one] / full.seconds[one])}× slower at one token)"
        for way in never
    )
    tail = f" Slower at every number of tokens: {slow}; no kernel reads these codes here." if never else ""
    return f"One token through {width} × {width}, times as fast as full precision: {told or 'none'}.{tail}"


def cache_rows(
    model: Model, recipes: Sequence[str], caches: Sequence[str], context: int = 512
) -> list[dict[str, Any]]:
    """Bytes of weights and of one sequence's cache, both of real tensors, for each pair; and that it runs."""
    rows = []
    for recipe in (FULL, *recipes):
        one = model if recipe == FULL else fresh(model)
        if recipe != FULL:
            quantize(one, recipe, progress=False)
        for cache in caches:
            nbytes, _, _ = quality.footprint(one, cache, context)
            out = labcore.generate(one, [1, 2, 3, 4], max_new_tokens=8, cache=cache, ignore_eos=True)
            rows.append(
                {
                    "weights": recipe,
                    "cache": cache,
                    "weight bytes": one.weight_bytes,
                    f"cache bytes at {context} tokens": nbytes,
                    "tokens generated": len(out.tokens),
                }
            )
    return rows


def paper_steps(
    config: ModelConfig, gpu: GPU, batches: Sequence[int] = (1, 8, 32), context: int = 1024
) -> list[dict[str, Any]]:
    """Ideal decode steps with narrower weights: what the bytes promise, and what the cache leaves of it."""
    rows, whole = [], weight_bytes(config, "float16")
    for batch in batches:
        times = {dtype: ideal_step(config, gpu, batch, context, dtype) for dtype in PAPER}
        rows.append(
            {
                "batch": batch,
                **{f"{dtype} (ms)": f"{seconds * 1e3:.2f}" for dtype, seconds in times.items()},
                "int4 is faster by": f"{times['float16'] / times['int4']:.2f}×",
                "weights smaller by": f"{whole / weight_bytes(config, 'int4'):.2f}×",
                "cache (GB)": f"{batch * kv_bytes(config, context, 'float16') / 1e9:.2f}",
            }
        )
    return rows


def golden_steps() -> list[dict[str, Any]]:
    """Llama-2-7B on an A100, 1,024 tokens each."""
    return paper_steps(catalog.architecture("llama-2-7b"), catalog.gpu("a100-80gb-sxm"))
