"""Saving and loading a model that labcore quantized: codes and scales as they are, with the recipe.

config.json gains a `quantization_config` with quant_method "labcore"; model.safetensors holds our own names,
because the codes of a fused matrix have no other. fp8 codes are stored as their bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from labcore import atomic
from labcore.config import ModelConfig
from labcore.errors import CheckpointError, ConfigError
from labcore.model import weights
from labcore.model.assembling import settle
from labcore.model.checkpoint import SINGLE, Checkpoint, Shape
from labcore.quant.formats import FP8, Format, QuantizedTensor
from labcore.quant.linear import FIELDS, QuantEmbedding, QuantLinear
from labcore.quant.quantizing import Swap

if TYPE_CHECKING:
    from labcore.model.loading import Model
    from labcore.model.transformer import Transformer

METHOD = "labcore"
ACTIVATIONS = (None, "token", "tensor", "static")


def save_quantized(model: Model, folder: Path | str) -> Path:
    """Write config.json and model.safetensors, whole or not at all; `labcore.load` reads them.

    Returns the folder.
    Raises CheckpointError for a model that is not quantized, or whose layers are stacked of several formats.
    """
    layers = _layers(model.transformer)
    if not layers:
        raise CheckpointError(
            f"Model {model.name!r} is not quantized; quantize it first, or write it with save_checkpoint."
        )
    if stacked := [name for name in layers if ".parts." in name]:
        raise CheckpointError(
            f"{stacked[0]} came from a checkpoint of another kind, whose fused matrices are held in parts; "
            "load that checkpoint again instead of saving it."
        )
    description = model.config.to_hugging_face() | {
        "torch_dtype": str(model.dtype).removeprefix("torch."),
        "quantization_config": {
            "quant_method": METHOD,
            "recipe": model.recipe,
            "layers": {name: _described(layer) for name, layer in layers.items()},
        },
    }
    home = Path(folder)
    home.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(home / SINGLE) as part:
        save_file(_stored(model.transformer), part, metadata={"format": "pt"})
        atomic.write_text(home / "config.json", json.dumps(description, indent=2, sort_keys=True) + "\n")
        if model.tokenizer is not None:
            model.tokenizer.save(home)
    return home


def fill(transformer: Transformer, config: ModelConfig, checkpoint: Checkpoint, description: dict[str, Any],
         device: torch.device, dtype: torch.dtype) -> None:  # fmt: skip
    """Give a skeleton (shapes only) what `save_quantized` wrote.

    Raises CheckpointError for a file that is not what config.json says.
    """
    try:
        layers = description["layers"]
        checkpoint.check(_expected(transformer, layers, checkpoint))
        swap = Swap()
        for name, about in layers.items():
            old = transformer.get_submodule(name)
            swap.put(transformer, name, _layer(name, (old.out_features, old.in_features), about, checkpoint))  # type: ignore[arg-type]
        _place(transformer, checkpoint, dtype)
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError, ConfigError) as error:
        raise CheckpointError(
            f"{checkpoint.folder.name} does not hold what its config.json says ({error}); save the model "
            "again."
        ) from None
    if config.tie_word_embeddings and isinstance(transformer.lm_head, QuantLinear):
        transformer.embed_tokens = QuantEmbedding(transformer.lm_head, dtype)
    settle(transformer, device)


def _layers(transformer: nn.Module) -> dict[str, QuantLinear]:
    return {name: layer for name, layer in transformer.named_modules() if isinstance(layer, QuantLinear)}


def _described(layer: QuantLinear) -> dict[str, Any]:
    return {
        "rows": layer.out_features,
        "columns": layer.in_features,
        "format": layer.format.label,
        "activations": layer.activations,
    }


def _stored(transformer: nn.Module) -> dict[str, Tensor]:
    """All tensors by our names, each once; fp8 as bytes."""
    found = {name: tensor.detach().cpu() for name, tensor in transformer.state_dict().items()}
    if found.keys() >= {"embed_tokens.weight", "lm_head.weight"} and (
        found["embed_tokens.weight"].data_ptr() == found["lm_head.weight"].data_ptr()
    ):
        del found["lm_head.weight"]
    return {
        name: (tensor.view(torch.uint8) if tensor.dtype in FP8.values() else tensor).contiguous().clone()
        for name, tensor in found.items()
    }


def _expected(
    transformer: Transformer, layers: dict[str, Any], checkpoint: Checkpoint
) -> dict[str, Shape | None]:
    """Every tensor by our names: plain parameters, and of each layer of codes what its format has."""
    expected: dict[str, Shape | None] = {
        name: tuple(parameter.shape) for name, parameter in weights.parameters_of(transformer).items()
    }
    if transformer.config.tie_word_embeddings and "lm_head" in layers:
        del expected["embed_tokens.weight"]  # read back from the head's codes
    for name, about in layers.items():
        old, shape = transformer.get_submodule(name), (about["rows"], about["columns"])
        if not isinstance(old, nn.Linear) or shape != (old.out_features, old.in_features):
            raise ValueError(f"{name} is no matrix of {shape[0]} × {shape[1]} in this model")
        expected.pop(f"{name}.weight", None)
        fmt = Format.parse(about["format"])
        needed = ["codes", "scale"] + ([] if fmt.symmetric else ["zero"])
        for field in FIELDS:
            stored = f"{name}.{field}" in checkpoint.tensors
            if field in needed or (stored and field not in ("zero", "bias")):
                expected[f"{name}.{field}"] = None
    return expected


def _layer(name: str, shape: tuple[int, int], about: dict[str, Any], checkpoint: Checkpoint) -> QuantLinear:
    """One layer of codes. QuantLinear copies what it is given, so that nothing stays mapped."""
    paths = {field: f"{name}.{field}" for field in FIELDS}
    parts = {field: checkpoint.read(path) for field, path in paths.items() if path in checkpoint.tensors}
    fmt = Format.parse(about["format"])
    codes, scale, zero = parts.pop("codes"), parts.pop("scale"), parts.pop("zero", None)
    fits = all(tensor is None or tensor.shape == fmt.grid_shape(*shape) for tensor in (scale, zero))
    if not fits or codes.numel() != shape[0] * shape[1] * fmt.bits // 8:
        raise ValueError(f"{name} has codes {list(codes.shape)} and scales {list(scale.shape)}")
    if about["activations"] not in ACTIVATIONS:
        raise ValueError(f"{name} has activations {about['activations']!r}")
    _ensure_inputs(name, shape, fmt, parts)
    codes = codes.view(FP8[fmt.dtype]) if fmt.dtype in FP8 else codes
    weight = QuantizedTensor(shape, fmt, codes, scale, zero, parts.pop("offset", None))
    return QuantLinear(weight, activations=about["activations"], **parts)


def _ensure_inputs(name: str, shape: tuple[int, int], fmt: Format, parts: dict[str, Tensor]) -> None:
    """Kernels follow these without a look, so that all must have their shapes and lie among the columns."""
    rows, columns = shape
    order, outliers = parts.get("order"), parts.get("outliers")
    count = 0 if outliers is None else outliers.numel()
    wanted = {
        "offset": fmt.grid_shape(*shape), "smooth": (columns,), "order": (columns,), "outliers": (count,),
        "outlier_weight": (rows, count),
    }  # fmt: skip
    for field, size in wanted.items():
        if field in parts and tuple(parts[field].shape) != size:
            raise ValueError(f"{name}.{field} has shape {list(parts[field].shape)}, not {list(size)}")
    if order is not None and not torch.equal(order.long().sort().values, torch.arange(columns)):
        raise ValueError(f"{name}.order is no order of its {columns} columns")
    if outliers is not None and not ((outliers >= 0) & (outliers < columns)).all():
        raise ValueError(f"{name}.outliers lie outside of its {columns} columns")


def _place(transformer: Transformer, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    """What is not quantized, into its parameters: copied, so that nothing stays mapped."""
    for name in weights.parameters_of(transformer):
        if name in checkpoint.tensors:
            home, _, leaf = name.rpartition(".")
            plain = nn.Parameter(checkpoint.read(name).to(dtype, copy=True), requires_grad=False)
            setattr(transformer.get_submodule(home), leaf, plain)
