"""SmoothQuant (Xiao et al. 2023): move the outliers of activations into the weights, then round both.

x W = (x / s)(s W): the product is the same for any s > 0 a column, and s_j = max|x_j|^α / max|w_j|^(1-α)
shares the difficulty between the two.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from labcore.errors import ConfigError
from labcore.quant.formats import Format, fake
from labcore.quant.linear import Activations, rounded

ALPHAS = tuple(step / 10 for step in range(11))


def smoothing(act_absmax: Tensor, weight: Tensor, alpha: float) -> Tensor:
    """s (columns,), which x is divided by and the weight's columns multiplied with.

    act_absmax: (columns,) largest magnitude of each input. Raises ConfigError for alpha outside of 0 to 1.
    """
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha is {alpha}; it lies between 0 (all left to activations) and 1 (all moved).")
    inputs = act_absmax.float().clamp_min(1e-5)
    weights = weight.float().abs().amax(0).clamp_min(1e-5)
    return (inputs.pow(alpha) / weights.pow(1 - alpha)).clamp(1e-5, 1e5)


def search_alpha(
    weight: Tensor,
    inputs: Tensor,
    fmt: Format,
    activations: Activations = "token",
    alphas: Sequence[float] = ALPHAS,
) -> tuple[float, list[tuple[float, float]]]:
    """(best alpha, [(alpha, mean squared error of the output)]) with both sides in 8 bits.

    inputs: (tokens, columns), which also tell the static scale.
    """
    exact, largest = inputs.float() @ weight.float().T, inputs.abs().amax(0)
    curve = []
    for alpha in alphas:
        s = smoothing(largest, weight, alpha)
        x = inputs.float() / s
        scale = static_scale(x.abs().amax()) if activations == "static" else None
        y = F.linear(rounded(x, activations, scale), fake(weight.float() * s, fmt))
        curve.append((float(alpha), float((y - exact).square().mean())))
    return min(curve, key=lambda point: point[1])[0], curve


def static_scale(largest: Tensor) -> Tensor:
    """The scale that puts the largest input of the calibration on 127."""
    return (largest.float() / 127).clamp_min(1e-12)
