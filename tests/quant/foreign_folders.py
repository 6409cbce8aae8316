"""Checkpoint folders as GPTQ's and AWQ's tools write them, packed as their documents say, apart from labcore.

Beside each folder goes transformers' own model with the weights that the codes stand for.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests import checkpoints

GROUP = 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def packed_along_rows(codes: np.ndarray, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """(n, m) codes -> (n, m * bits / 32) int32, a loop over the places."""
    each = 32 // bits
    out = np.zeros((codes.shape[0], codes.shape[1] // each), dtype=np.uint32)
    for place in range(each):
        column = place if order is None else order[place]
        out |= codes[:, column::each].astype(np.uint32) << np.uint32(bits * place)
    return torch.from_numpy(out.view(np.int32).copy())


def less_one(words: Tensor, bits: int) -> Tensor:
    """The first format's zero points, from the second's: one subtraction of a whole word, with borrows."""
    return words - {4: 0x11111111, 8: 0x01010101}[bits]


class Foreign:
    """One matrix quantized at random: its codes, and what they stand for."""

    def __init__(
        self, rows: int, columns: int, group: int, bits: int, seed: int,
        g_idx: np.ndarray | None = None, symmetric: bool = False,
    ):  # fmt: skip
        rng = np.random.default_rng(seed)
        self.bits, groups = bits, columns // group
        self.q = rng.integers(0, 2**bits, (columns, rows))
        self.zero = rng.integers(0, 2**bits, (groups, rows))
        if symmetric:
            self.zero[:] = 2 ** (bits - 1)
        self.scale = (rng.random((groups, rows)) * 0.02 + 0.005).astype(np.float16)
        self.g_idx = np.arange(columns) // group if g_idx is None else g_idx
        dense = (self.q - self.zero[self.g_idx]) * self.scale.astype(np.float32)[self.g_idx]
        self.weight = torch.from_numpy(dense.T.astype(np.float32))  # (rows, columns)

    def gptq(self, version: int = 1) -> dict[str, Tensor]:
        zeros = packed_along_rows(self.zero, self.bits)
        return {
            "qweight": packed_along_rows(self.q.T, self.bits).T.contiguous(),
            "qzeros": less_one(zeros, self.bits) if version == 1 else zeros,
            "scales": torch.from_numpy(self.scale),
            "g_idx": torch.from_numpy(self.g_idx.astype(np.int32)),
        }

    def awq(self) -> dict[str, Tensor]:
        return {
            "qweight": packed_along_rows(self.q, 4, AWQ_ORDER),
            "qzeros": packed_along_rows(self.zero, 4, AWQ_ORDER),
            "scales": torch.from_numpy(self.scale),
        }


@cache
def plain(case: str) -> Any:
    """One of tests.checkpoints.CASES in transformers, built once."""
    return checkpoints.build(case)


def write(
    home: Path, method: str, *, case: str = "llama", head: bool = False, bits: int = 4, group: int = GROUP,
    version: int = 1, symmetric: bool = False, **settings: Any,
) -> dict[str, Tensor]:  # fmt: skip
    """A folder whose linear layers, and where asked its head, are codes. settings: of quantization_config.

    Returns the weights that it stands for, by their names.
    """
    stored: dict[str, Tensor] = {}
    weights: dict[str, Tensor] = {}
    for seed, (name, tensor) in enumerate(plain(case).named_parameters()):
        if tensor.dim() == 1 or not ("_proj" in name or (head and name == "lm_head.weight")):
            stored[name] = weights[name] = tensor.detach().clone()
            continue
        width = tensor.shape[1] if group == -1 else group
        codes = Foreign(*tensor.shape, width, bits, seed, symmetric=symmetric)
        weights[name] = codes.weight
        parts = codes.gptq(version) if method == "gptq" else codes.awq()
        stored |= {f"{name.removesuffix('weight')}{part}": value for part, value in parts.items()}
    home.mkdir(exist_ok=True)
    save_file(stored, home / "model.safetensors")
    description = {"quant_method": method, "bits": bits, "group_size": group} | settings
    config = plain(case).config.to_dict() | {"quantization_config": description}
    (home / "config.json").write_text(json.dumps(config, default=str))
    return weights


def expected_logits(case: str, weights: dict[str, Tensor], tokens: list[list[int]]) -> Tensor:
    """What transformers computes with these weights."""
    model = plain(case)
    with torch.no_grad():
        return torch.func.functional_call(model, weights, (torch.tensor(tokens),)).logits


def edit(home: Path, **tensors: Tensor | None) -> None:
    """Set tensors of a folder's file; None removes one."""
    stored = load_file(home / "model.safetensors") | tensors
    save_file({name: t for name, t in stored.items() if t is not None}, home / "model.safetensors")


def describe(home: Path, **settings: Any) -> None:
    """Set entries of quantization_config; a value of ... removes one."""
    description = json.loads((home / "config.json").read_text())["quantization_config"] | settings
    kept = {key: value for key, value in description.items() if value is not ...}
    checkpoints.edit_config(home, quantization_config=kept)


def as_auto_gptq(home: Path) -> None:
    """A folder as AutoGPTQ left it before transformers knew the method, by its own names."""
    (home / "model.safetensors").rename(home / "gptq_model-4bit-32g.safetensors")
    old = {"bits": 4, "group_size": GROUP, "desc_act": False, "sym": False, "damp_percent": 0.01}
    (home / "quantize_config.json").write_text(json.dumps(old))
    checkpoints.edit_config(home, quantization_config=...)
