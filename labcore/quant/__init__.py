"""How weights shrink: formats, methods, recipes, and the linear layers that compute with what is left."""

from __future__ import annotations

from labcore.quant.formats import Format, QuantizedTensor, fake, quantize_tensor
from labcore.quant.linear import QuantEmbedding, QuantLinear, Stacked
from labcore.quant.planted import plant_outliers
from labcore.quant.quantizing import LayerReport, Report, quantize
from labcore.quant.recipe import Recipe

__all__ = [
    "Format",
    "LayerReport",
    "QuantEmbedding",
    "QuantLinear",
    "QuantizedTensor",
    "Recipe",
    "Report",
    "Stacked",
    "fake",
    "plant_outliers",
    "quantize",
    "quantize_tensor",
]
