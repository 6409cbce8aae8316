"""Checkpoint folders of AutoGPTQ, GPTQModel or AutoAWQ: 4-bit codes (GPTQ's 8-bit too) in safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from labcore.config import ModelConfig
from labcore.errors import CheckpointError
from labcore.model import weights
from labcore.model.assembling import Part, assemble
from labcore.model.checkpoint import Checkpoint
from labcore.quant.foreign import from_awq, from_gptq

if TYPE_CHECKING:
    from labcore.model.transformer import Transformer

METHODS = ("gptq", "awq")


def fill(transformer: Transformer, config: ModelConfig, folder: Path, description: dict[str, Any],
         device: torch.device, dtype: torch.dtype) -> None:  # fmt: skip
    """Give a skeleton what the folder holds. description: its quantization_config.

    Raises CheckpointError for bits or packings that labcore does not read, and tensors missing or misshapen.
    """
    with Checkpoint(folder) as checkpoint:
        reader = _Reader(checkpoint, description)
        assemble(transformer, config, reader.part, device, dtype)


class _Reader:
    """Parts of one checkpoint by their Hugging Face module names."""

    def __init__(self, checkpoint: Checkpoint, description: dict[str, Any]) -> None:
        self.checkpoint = checkpoint
        self.method = str(description["quant_method"])
        self.bits = int(description.get("bits", description.get("w_bit", 4)))
        self.group = int(description.get("group_size", description.get("q_group_size", 128)))
        version = str(description.get("version", "gemm")).lower()
        if self.method == "awq" and version != "gemm":
            raise CheckpointError(
                f"{checkpoint.folder.name} is packed in AWQ's version {version!r}; labcore reads 'gemm'."
            )
        # GPTQ's second format stores zero points as they are.
        self.zero_offset = 0 if description.get("checkpoint_format") == "gptq_v2" else 1

    def part(self, name: str) -> Part | None:
        """A module's weights; None where the checkpoint has none of that name."""
        bias = self._get(f"{name}.bias")
        if (plain := self._get(f"{name}.weight")) is not None:
            return Part(plain, bias)
        if (qweight := self._get(f"{name}.qweight")) is None:
            return None
        qzeros, scales = self._need(f"{name}.qzeros"), self._need(f"{name}.scales")
        if self.method == "awq":
            codes = from_awq(qweight, qzeros, scales, bits=self.bits, group=self.group, name=name)
            return Part(codes, bias)
        codes, order = from_gptq(
            qweight, qzeros, scales, self._get(f"{name}.g_idx"),
            bits=self.bits, group=self.group, zero_offset=self.zero_offset, name=name,
        )  # fmt: skip
        return Part(codes, bias, order)

    def _get(self, name: str) -> Tensor | None:
        if name == weights.HEAD and name not in self.checkpoint.tensors:
            name = weights.EMBEDDING
        return self.checkpoint.read(name) if name in self.checkpoint.tensors else None

    def _need(self, name: str) -> Tensor:
        if (found := self._get(name)) is None:
            raise CheckpointError(
                f"{self.checkpoint.folder.name} lacks {name}, without which its codes mean nothing; fetch "
                "the whole checkpoint."
            )
        return found
