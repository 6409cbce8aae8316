"""Initial weights, optimisers and the learning-rate schedule.

Matrices are drawn at 1/sqrt(inputs) and moved by Muon (Jordan et al. 2024): with the customary 0.02 and
AdamW alone, recall stays at chance for millions of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from data.story.look_back import look_back
from labcore.model.transformer import Transformer

PEAK_LR = 3e-3


def draw_weights(model: Transformer, seed: int) -> None:
    """Draw every matrix from N(0, 1/inputs), what writes to the residual stream at 0; then `look_back`."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            continue
        scale = 1 / math.sqrt(parameter.shape[1])
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            scale = 0.0
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    look_back(model)


class Optimiser:
    """fp32 master copies of a bf16 model's weights: Muon for the layers' matrices, AdamW for the rest."""

    def __init__(self, model: Transformer, seed: int) -> None:
        draw_weights(model, seed)
        self.live = dict(model.named_parameters())
        self.masters = {name: nn.Parameter(p.detach().float()) for name, p in self.live.items()}
        matrices = [p for name, p in self.masters.items() if name.startswith("layers") and p.ndim == 2]
        rest = [p for name, p in self.masters.items() if not (name.startswith("layers") and p.ndim == 2)]
        self.muon = torch.optim.Muon(matrices, lr=PEAK_LR, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
        self.adamw = torch.optim.AdamW(rest, lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=0.0)

    def gradients(self) -> list[Tensor]:
        """Move the model's gradients into the masters, as fp32, and return them."""
        for name, parameter in self.live.items():
            assert parameter.grad is not None, name
            self.masters[name].grad = parameter.grad.float()
            parameter.grad = None
        return [p.grad for p in self.masters.values() if p.grad is not None]

    def step(self, lr: float) -> None:
        """One update at learning rate `lr`, copied into the model."""
        torch.nn.utils.clip_grad_norm_(self.masters.values(), 1.0)
        for optimiser in (self.muon, self.adamw):
            for group in optimiser.param_groups:
                group["lr"] = lr
            optimiser.step()
        self.publish()

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the masters into the model."""
        for name, parameter in self.live.items():
            parameter.copy_(self.masters[name])

    def state_dict(self) -> dict[str, object]:
        return {"masters": self.masters, "muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(state["masters"][name])
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])
        self.publish()


def mean_of(gradients: Iterable[Tensor], workers: int) -> None:
    """Replace every gradient by its mean over the workers (in place)."""
    if workers == 1:
        return
    gradients = list(gradients)
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= workers
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
