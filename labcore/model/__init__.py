"""The model: its mathematics (`transformer`), and how it comes from files and goes to them (`loading`)."""

from __future__ import annotations

from labcore.model.checkpoint import save_checkpoint
from labcore.model.loading import Model, load
from labcore.model.quant_checkpoint import save_quantized
from labcore.model.transformer import Transformer

__all__ = ["Model", "Transformer", "load", "save_checkpoint", "save_quantized"]
