"""LLM.int8() (Dettmers et al. 2022): the few columns with huge inputs are multiplied in full precision."""

from __future__ import annotations

import torch
from torch import Tensor

from labcore.errors import ConfigError
from labcore.quant.formats import Format, QuantizedTensor, quantize_tensor

THRESHOLD = 6.0


def outlier_columns(act_absmax: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """Indices (k,) of the columns whose inputs reach the threshold. act_absmax: (columns,).

    The paper looks at every batch anew; here calibration decides once, so that the weights can be split.
    Raises ConfigError for a threshold that is not positive.
    """
    if threshold <= 0:
        raise ConfigError(f"threshold is {threshold}; it is a magnitude above 0, and 6 in the paper.")
    return (act_absmax >= threshold).nonzero()[:, 0]


def split(weight: Tensor, columns: Tensor, fmt: Format) -> tuple[QuantizedTensor, Tensor, Tensor]:
    """(codes without these columns, the columns, their weights (rows, k) as they were)."""
    apart = weight[:, columns].clone()
    rest = weight.index_fill(1, columns, 0.0)
    return quantize_tensor(rest, fmt), columns.to(torch.int64), apart
