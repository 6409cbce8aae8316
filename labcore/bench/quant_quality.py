"""`labcore bench quant-quality`: what quantized weights cost in quality, per method and bits.

Two tables on the embedded model: as it is, and with outliers planted in its activations, which is what the
methods for 8-bit activations were made for. All read the same texts, so that changes are told in pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import labcore
from labcore.model import Model
from labcore.quality import Estimate, WeightQuality, perplexity_change, recall_change, weight_quality
from labcore.quant import Recipe, plant_outliers

RECIPES = (
    "int8",
    "int4", "gptq-int4", "awq-int4",
    "int3", "gptq-int3", "awq-int3",
    "int2", "gptq-int2", "awq-int2",
    "int4:symmetric=false", "nf4", "fp8_e4m3",
    "w8a8", "smoothquant", "llm_int8",
)  # fmt: skip
PLANTED = (
    "w8a8", "w8a8:activations=tensor", "w8a8:activations=static",
    "smoothquant:alpha=0.3", "smoothquant:alpha=0.5", "smoothquant:alpha=0.7", "smoothquant:alpha=0.9",
    "llm_int8", "int8", "int4", "awq-int4",
)  # fmt: skip
INT8_LIMIT = 0.005  # of perplexity
ORDERED_BITS = (4, 3)  # where methods that look at the inputs should win; at 2 nothing is promised


@dataclass(frozen=True)
class Measured:
    """One model. recipe: None in full precision. bits_per_weight: of its linear layers, scales included."""

    recipe: Recipe | None
    bits_per_weight: float
    definition: WeightQuality
    served: WeightQuality


@dataclass(frozen=True)
class Claim:
    """That a relative difference of perplexity, measured in pairs, lies in a range (None: no bound)."""

    what: str
    measured: Estimate
    floor: float | None = None
    ceiling: float | None = None

    @property
    def met(self) -> bool:
        """Whether the measured value lies in the range."""
        return not self._above(self.measured.value) and not self._below(self.measured.value)

    @property
    def outside_noise(self) -> bool:
        """Whether the whole interval says the same as the value: inside all bounds, or beyond one of them."""
        low, high = self.measured.low, self.measured.high
        if not self.met:
            return self._above(low) or self._below(high)
        return (self.floor is None or low > self.floor) and (self.ceiling is None or high < self.ceiling)

    def _above(self, value: float) -> bool:
        return self.ceiling is not None and value > self.ceiling

    def _below(self, value: float) -> bool:
        return self.floor is not None and value < self.floor

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"met": self.met, "outside_noise": self.outside_noise}


def bench_quant_quality(
    recipes: Sequence[str] = RECIPES,
    planted: Sequence[str] = PLANTED,
    *,
    stories: int = 100,
    questions: int = 200,
    device: str = "auto",
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Plain data of both tables. planted: recipes of the one with outliers; none leaves it out.

    questions: 0 asks none. Raises ConfigError for a recipe that does not exist, before anything is measured.
    """
    plain_recipes, planted_recipes = ([Recipe.parse(text) for text in texts] for texts in (recipes, planted))

    def fresh() -> Model:
        return labcore.load("story", device=device, dtype="float32")

    def with_outliers() -> Model:
        model = fresh()
        plant_outliers(model)
        return model

    settings: dict[str, Any] = {"stories": stories, "questions": questions, "progress": progress}
    found = measure(fresh, plain_recipes, **settings)
    outliers = measure(with_outliers, planted_recipes, **settings) if planted_recipes else []
    base = found[0].definition
    return {
        "model": fresh().name,
        "stories": len(base.counts),
        "tokens": base.perplexity.count,
        "questions": len(base.right),
        "rows": [row(one, found[0]) for one in found],
        "claims": [claim.to_dict() for claim in claims(found)],
        "planted": [row(one, outliers[0]) for one in outliers],
    }


def measure(
    fresh: Callable[[], Model],
    recipes: Sequence[Recipe],
    *,
    stories: int,
    questions: int,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Measured]:
    """Full precision first, then each recipe on a fresh model, all on the same texts and questions."""
    full = fresh()
    found = []
    for recipe in (None, *recipes):
        progress(f"measuring: {recipe.label if recipe else 'full precision'}")
        model, bits = fresh(), 8.0 * full.dtype.itemsize
        if recipe:
            bits = labcore.quantize(model, recipe, progress=False).bits_per_weight
        definition = weight_quality(model, full, stories=stories, questions=questions)
        served = weight_quality(model, full, stories=stories, questions=0, fast=True)
        found.append(Measured(recipe, bits, definition, served))
    return found


def row(one: Measured, base: Measured) -> dict[str, Any]:
    """Plain data of one line; changes are against `base`, which is in full precision."""
    told, reference, recall = one.definition, base.definition, recall_change(one.definition, base.definition)
    return {
        "recipe": told.recipe,
        "method": one.recipe.method if one.recipe else "none",
        "bits": one.recipe.weights.bits if one.recipe else round(one.bits_per_weight),
        "bits_per_weight": one.bits_per_weight,
        "weight_bytes": told.weight_bytes,
        "computed": told.computed,
        "perplexity": asdict(told.perplexity),
        "perplexity_change": asdict(perplexity_change(told, reference)),
        "divergence": asdict(told.divergence),
        "recall": asdict(told.recall) if told.recall else None,
        "recall_change": asdict(recall) if recall else None,
        "served": {
            "computed": one.served.computed,
            "perplexity_change": asdict(perplexity_change(one.served, reference)),
        },
    }


def claims(found: Sequence[Measured]) -> list[Claim]:
    """What theory says of these models, as far as they are there, by definition.

    Rounding to nearest loses at least as much as GPTQ and AWQ in the same format at 4 and 3 bits; int8 stays
    within 0.5 % of full precision.
    """
    base = next(one for one in found if one.recipe is None).definition
    result = []
    for plain, recipe in _with_method(found, "rtn"):
        if recipe.weights.dtype == "int8":
            change = perplexity_change(plain.definition, base)
            what = f"perplexity of {recipe.label} within {INT8_LIMIT:.1%} of full precision's"
            result.append(Claim(what, change, floor=-INT8_LIMIT, ceiling=INT8_LIMIT))
        if not recipe.weights.is_integer or recipe.weights.bits not in ORDERED_BITS:
            continue
        for method in ("gptq", "awq"):
            for other, theirs in _with_method(found, method):
                if (theirs.weights, theirs.head) == (recipe.weights, recipe.head):
                    change = perplexity_change(plain.definition, other.definition)
                    what = f"perplexity of {recipe.label} at least that of {theirs.label}"
                    result.append(Claim(what, change, floor=0.0))
    return result


def _with_method(found: Sequence[Measured], method: str) -> list[tuple[Measured, Recipe]]:
    """Those of this method that leave activations as they are."""
    return [
        (one, one.recipe)
        for one in found
        if one.recipe and one.recipe.method == method and one.recipe.activations is None
    ]
