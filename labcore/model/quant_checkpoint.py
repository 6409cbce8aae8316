"""Saving and loading a model that labcore quantized: codes and scales as they are, with the recipe.

config.json gains a `quantization_config` with quant_method "labcore"; model.safetensors holds our own names,
because the codes of a fused matrix have no other. fp8 codes are stored as their bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from labcore import atomic
from labcore.config import ModelConfig
from labcore.errors import CheckpointError
from labcore.quant import choice
from labcore.quant.formats import FP8, Format, QuantizedTensor
from labcore.quant.linear import FIELDS, QuantEmbedding, QuantLinear
from labcore.quant.quantizing import Swap

if TYPE_CHECKING:
    from labcore.model.loading import Model
    from labcore.model.transformer import Transformer

METHOD = "labcore"
SINGLE = "model.safetensors"


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


def fill(transformer: Transformer, config: ModelConfig, folder: Path, description: dict[str, Any],
         device: torch.device, dtype: torch.dtype) -> None:  # fmt: skip
    """Give a skeleton (shapes only) what `save_quantized` wrote.

    Raises CheckpointError for a file that is missing, cut short, or not what config.json says.
    """
    try:
        layers = description["layers"]
        with safe_open(folder / SINGLE, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        swap = Swap()
        for name, about in layers.items():
            swap.put(transformer, name, _layer(name, about, tensors))
        _place(transformer, tensors, dtype)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{folder.name}/{SINGLE} is missing, corrupt or cut short ({error}); save the model again."
        ) from None
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{folder.name} does not hold what its config.json says ({error}); save the model again."
        ) from None
    if config.tie_word_embeddings and isinstance(transformer.lm_head, QuantLinear):
        transformer.embed_tokens = QuantEmbedding(transformer.lm_head, dtype)
    transformer.tie()
    transformer.reset_rope()
    transformer.to(device)
    transformer.tie()
    transformer.requires_grad_(False)
    choice.prepare(device)


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


def _layer(name: str, about: dict[str, Any], tensors: dict[str, Tensor]) -> QuantLinear:
    """One layer of codes, taken out of the tensors."""
    parts = {field: tensors.pop(f"{name}.{field}", None) for field in FIELDS}
    fmt = Format.parse(about["format"])
    shape = (int(about["rows"]), int(about["columns"]))
    codes, scale = parts.pop("codes"), parts.pop("scale")
    if codes is None or scale is None:
        raise KeyError(f"{name} lacks its codes or its scales")
    if scale.shape != fmt.grid_shape(*shape) or codes.numel() != shape[0] * shape[1] * fmt.bits // 8:
        raise ValueError(f"{name} has codes {list(codes.shape)} and scales {list(scale.shape)}")
    codes = codes.view(FP8[fmt.dtype]) if fmt.dtype in FP8 else codes
    weight = QuantizedTensor(shape, fmt, codes, scale, parts.pop("zero"), parts.pop("offset"))
    return QuantLinear(weight, activations=about["activations"], **parts)


def _place(transformer: nn.Module, tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
    """What is not quantized, into its parameters."""
    parameters = dict(transformer.named_parameters(remove_duplicate=True))
    tied = bool(transformer.config.tie_word_embeddings)  # type: ignore[union-attr]
    if tied and isinstance(transformer.lm_head, QuantLinear):
        parameters.pop("embed_tokens.weight", None)  # read back from the head's codes
    if parameters.keys() != tensors.keys():
        odd = sorted(parameters.keys() ^ tensors.keys())
        raise KeyError(f"{odd[0]} is missing or has no place")
    for name, parameter in parameters.items():
        if parameter.shape != tensors[name].shape:
            raise ValueError(f"{name} has shape {list(tensors[name].shape)}, not {list(parameter.shape)}")
        home, _, leaf = name.rpartition(".")
        setattr(
            transformer.get_submodule(home), leaf, nn.Parameter(tensors[name].to(dtype), requires_grad=False)
        )
