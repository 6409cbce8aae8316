"""Checkpoint folders of AutoGPTQ, GPTQModel or AutoAWQ: 4-bit codes (GPTQ's 8-bit too) in safetensors."""

from __future__ import annotations

import json
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from labcore.config import ModelConfig
from labcore.errors import CheckpointError
from labcore.model import weights
from labcore.model.assembling import Part, assemble
from labcore.model.checkpoint import Checkpoint, Shape
from labcore.quant.foreign import from_awq, from_gptq

if TYPE_CHECKING:
    from labcore.model.transformer import Transformer

METHODS = ("gptq", "awq")
CODES = ("qweight", "qzeros", "scales")
# What the tools wrote before config.json had a quantization_config, and the method where it names none.
OLDER_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
PACKINGS = {"gptq": ("gptq", "gptq_v2"), "awq": ("gemm",)}
# Settings under which codes mean something else, and the values that labcore reads.
_ONLY = {
    "pack_dtype": ("int32",), "is_marlin_format": (False,), "rotation": (None, ""), "adapter": (None,),
    "data_type": ("int",), "act_bits": (16, None),
}  # fmt: skip


@dataclass(frozen=True)
class Packing:
    """What a quantization_config says of all codes. group: columns that share a scale, -1: all."""

    method: str
    bits: int
    group: int
    version: str
    symmetric: bool  # stated, not assumed
    reordered: bool  # g_idx says in which order the inputs stand

    @classmethod
    def parse(cls, description: dict[str, Any], where: str) -> Packing:
        """Raises CheckpointError for a setting that is not understood, with its name."""
        method = str(description["quant_method"])
        for key, understood in _ONLY.items():
            if key in description and description[key] not in understood:
                raise _not_read(where, key, description[key], understood[0])
        if description.get("backend") == "llm-awq":  # packs another way than AutoAWQ, under no other name
            raise _not_read(where, "backend", "llm-awq", "AutoAWQ's gemm")
        _refuse_exceptions(description.get("dynamic"), where)
        return cls(
            method,
            bits=_number(description, ("bits", "w_bit"), 4, where),
            group=_number(description, ("group_size", "q_group_size"), 128, where),
            version=_version(description, method, where),
            symmetric=_flag(description, "sym", False, where)
            or not _flag(description, "zero_point", True, where),
            reordered=_flag(description, "desc_act", False, where),
        )


def fill(transformer: Transformer, config: ModelConfig, checkpoint: Checkpoint, description: dict[str, Any],
         device: torch.device, dtype: torch.dtype) -> None:  # fmt: skip
    """Give a skeleton what the folder holds. description: its quantization_config.

    Raises CheckpointError for bits or packings that labcore does not read, and tensors missing, misshapen or
    without a place.
    """
    packing = Packing.parse(description, checkpoint.folder.name)
    shapes = weights.shapes(config, transformer)
    coded = {name for name in shapes if _is_coded(name, shapes[name], checkpoint)}
    if not coded:
        raise CheckpointError(
            f"{checkpoint.folder.name} says that its weights are {packing.method} codes, and holds none; "
            "remove quantization_config from its config.json, or fetch the weights that belong to it."
        )
    checkpoint.check(
        _expected(shapes, coded, checkpoint, packing), ignorable=_idle(shapes, coded, checkpoint)
    )

    def part(module: str) -> Part:
        bias = checkpoint.read(f"{module}.bias") if f"{module}.bias" in shapes else None
        if f"{module}.weight" in coded:
            return _codes(module, checkpoint, packing, bias)
        return Part(checkpoint.read(f"{module}.weight"), bias)

    assemble(transformer, config, part, device, dtype)


def older_description(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """What quantize_config.json or quant_config.json says of a folder's codes; None without codes or file.

    Raises CheckpointError for a file that is no such description.
    """
    if not any(name.endswith(".qweight") for name in checkpoint.tensors):
        return None
    for name, method in OLDER_FILES.items():
        if (path := checkpoint.folder / name).is_file():
            return {"quant_method": method} | _described(path)
    return None


def codes_of(module: str) -> tuple[str, ...]:
    """The names of a module's codes, "lm_head" -> "lm_head.qweight", ..."""
    return tuple(f"{module}.{part}" for part in CODES)


def _described(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        stored = None
    if not isinstance(stored, dict):
        raise CheckpointError(
            f"{path.name} in {path.parent.name} is no description of codes; fetch it again."
        )
    return stored


def _is_coded(name: str, shape: Shape, checkpoint: Checkpoint) -> bool:
    """Whether this weight is stored as codes. The tools code linear layers, never the embedding."""
    module = name.removesuffix(".weight")
    matrix = len(shape) == 2 and name.endswith(".weight") and name != weights.EMBEDDING
    return matrix and any(part in checkpoint.tensors for part in codes_of(module))


def _expected(
    shapes: dict[str, Shape], coded: set[str], checkpoint: Checkpoint, packing: Packing
) -> dict[str, Shape | None]:
    """The names that the folder must hold; the shapes of codes depend on each other, and are held later."""
    expected: dict[str, Shape | None] = {name: shape for name, shape in shapes.items() if name not in coded}
    for name in coded:
        module = name.removesuffix(".weight")
        expected |= dict.fromkeys(codes_of(module))
        order = f"{module}.g_idx"
        if packing.method == "gptq" and (packing.reordered or order in checkpoint.tensors):
            expected[order] = None
    return expected


def _idle(shapes: dict[str, Shape], coded: set[str], checkpoint: Checkpoint) -> list[str]:
    """Biases of zeros that the model has no place for: AutoGPTQ gave every layer of codes one."""
    biases = {name.removesuffix("weight") + "bias" for name in coded} - shapes.keys()
    return [name for name in biases if name in checkpoint.tensors and not checkpoint.read(name).any()]


def _codes(module: str, checkpoint: Checkpoint, packing: Packing, bias: Tensor | None) -> Part:
    qweight, qzeros, scales = (checkpoint.read(name) for name in codes_of(module))
    common: dict[str, Any] = {
        "bits": packing.bits, "group": packing.group, "symmetric": packing.symmetric, "name": module,
    }  # fmt: skip
    if packing.method == "awq":
        return Part(from_awq(qweight, qzeros, scales, **common), bias)
    g_idx = checkpoint.read(f"{module}.g_idx") if f"{module}.g_idx" in checkpoint.tensors else None
    offset = 0 if packing.version == "gptq_v2" else 1
    codes, order = from_gptq(qweight, qzeros, scales, g_idx, zero_offset=offset, **common)
    return Part(codes, bias, order)


def _version(description: dict[str, Any], method: str, where: str) -> str:
    """How codes are packed. AutoAWQ says "version", GPTQModel "checkpoint_format", transformers "format"."""
    keys = ("checkpoint_format", "format", "version")
    stated = {key: str(description[key]).lower() for key in keys if description.get(key) is not None}
    for key, version in stated.items():
        if version not in PACKINGS[method]:
            raise CheckpointError(
                f"{where} is packed in {method}'s {key} {version!r}; labcore reads "
                f"{' and '.join(map(repr, PACKINGS[method]))}."
            )
    if len(set(stated.values())) > 1:
        both = " and ".join(f"{key} {version!r}" for key, version in stated.items())
        raise CheckpointError(f"{where} states {both} in its quantization_config; keep the right one.")
    return next(iter(stated.values()), PACKINGS[method][0])


def _refuse_exceptions(dynamic: object, where: str) -> None:
    """GPTQModel's settings of single modules: "-:pattern" leaves them plain, which their tensors say too."""
    if not dynamic:
        return
    if not isinstance(dynamic, dict):
        raise _not_read(where, "dynamic", dynamic, "a table of modules")
    for pattern, settings in dynamic.items():
        if settings and not pattern.startswith("-:"):
            raise CheckpointError(
                f"{where} quantizes {pattern} by settings of its own ({reprlib.repr(settings)}, under "
                "dynamic in its quantization_config); labcore reads one format for the whole folder."
            )


def _number(description: dict[str, Any], keys: tuple[str, ...], default: int, where: str) -> int:
    key = next((key for key in keys if key in description), keys[0])
    value = description.get(key, default)
    if type(value) is not int or value < -1:
        raise _not_read(where, key, value, "a whole number")
    return value


def _flag(description: dict[str, Any], key: str, default: bool, where: str) -> bool:
    value = description.get(key, default)
    if not isinstance(value, bool):
        raise _not_read(where, key, value, "true or false")
    return value


def _not_read(where: str, key: str, value: object, understood: object) -> CheckpointError:
    wanted = understood if isinstance(understood, str) and understood else repr(understood)
    return CheckpointError(
        f"{where} has {key} {reprlib.repr(value)} in its quantization_config; labcore reads {wanted}."
    )
