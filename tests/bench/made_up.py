"""What the benchmarks' tests share: roofs that nobody measured, and a model that takes no time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from labcore.config import ModelConfig
from labcore.model import Model, Transformer, save_checkpoint
from labcore.perf import Roofs

ROOFS = Roofs(
    device="cpu", device_name="made up", threads=2, torch_version="0", measured_at="", seconds=0.0,
    matmul_flops={"float32": 1e11, "int8": 4e11}, matmul_shapes={}, read_bandwidth=1.0e10,
    copy_bandwidth=1.2e10, launch_overhead_s=1e-6, working_set_bytes=1,
)  # fmt: skip

# Linear weights of a layer: 2048 + 1024 + 3072 + 1536 = 7680.
SMALL = ModelConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    intermediate_size=48, vocab_size=64, max_position_embeddings=256, tie_word_embeddings=True,
)  # fmt: skip


def model_of(config: ModelConfig, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Model:
    """A model of random weights."""
    torch.manual_seed(0)
    transformer = Transformer(config).requires_grad_(False).to(device, dtype)
    for parameter in transformer.parameters():
        parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.2)
    return Model("tiny", config, transformer, None)


def folder_of(config: ModelConfig, path: Path) -> Path:
    """The same as a checkpoint."""
    return save_checkpoint(model_of(config), config, path, dtype="float32")


def without_measuring(monkeypatch: Any, *modules: str) -> None:
    """These modules of `labcore.bench` take the roofs above, which a quick machine may exceed."""
    monkeypatch.setattr("labcore.shares.TOLERANCE", float("inf"))
    for name in modules:
        monkeypatch.setattr(f"labcore.bench.{name}.roofs", lambda *_, **__: ROOFS)
