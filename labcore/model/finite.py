"""Weights are numbers: NaN or infinity in one of them makes every answer empty or wrong, without a word."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from labcore.errors import CheckpointError


def ensure_finite(model: nn.Module, name: str, dtype: torch.dtype) -> None:
    """Read all weights, biases and scales once, where they lie, as fast as memory is read.

    On a GPU it is waited for once, at the end. Raises CheckpointError that names the first tensor with a NaN
    or an infinity. dtype: that the weights were loaded in.
    """
    tensors = list(_floats(model))
    sound = [_extremes(tensor).isfinite().all() for _, tensor in tensors]
    if not sound or bool(torch.stack(sound).all()):
        return
    wrong = next(name for (name, _), fine in zip(tensors, sound, strict=True) if not fine)
    narrow = "load it with dtype='bfloat16' or 'float32', or " if dtype == torch.float16 else ""
    raise CheckpointError(
        f"{wrong} of {name} holds NaN or infinity in {str(dtype).removeprefix('torch.')}, with which every "
        f"answer is empty or wrong; {narrow}fetch the checkpoint again."
    )


def _floats(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and tensor.numel():
            yield name, tensor.detach()


def _extremes(tensor: Tensor) -> Tensor:
    """(2,): the least and the largest, in one pass without a copy; NaN where there is one."""
    plain = tensor.half() if tensor.dtype.itemsize == 1 else tensor  # fp8 has few operations
    return torch.stack(plain.aminmax())
