"""Estimates with their 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

Z = 1.96
DRAWS = 2000


@dataclass(frozen=True)
class Estimate:
    """A value, its 95 % interval, and how many observations it comes from."""

    value: float
    low: float
    high: float
    count: int


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    share = right / count
    middle = share + Z * Z / (2 * count)
    spread = Z * math.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count))
    return (middle - spread) / (1 + Z * Z / count), (middle + spread) / (1 + Z * Z / count)


def share(right: Sequence[bool]) -> Estimate:
    """The share of what is true."""
    low, high = wilson(sum(right), len(right))
    return Estimate(sum(right) / len(right), low, high, len(right))


def perplexity(losses: Sequence[float], tokens: Sequence[int]) -> Estimate:
    """exp(sum of losses / tokens), with texts drawn anew: tokens of one text are not independent."""
    total, count = torch.tensor(losses, dtype=torch.float64), torch.tensor(tokens, dtype=torch.float64)
    picks = _draws(len(losses))
    means = (total[picks].sum(1) / count[picks].sum(1)).exp()
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(float((total.sum() / count.sum()).exp()), low, high, int(count.sum()))


def mean(sums: Sequence[float], counts: Sequence[int]) -> Estimate:
    """Sum of sums / sum of counts, with texts drawn anew: what belongs to one text is not independent."""
    total, count = torch.tensor(sums, dtype=torch.float64), torch.tensor(counts, dtype=torch.float64)
    picks = _draws(len(sums))
    means = total[picks].sum(1) / count[picks].sum(1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(float(total.sum() / count.sum()), low, high, int(count.sum()))


def paired_share(one: Sequence[bool], other: Sequence[bool]) -> Estimate:
    """How much larger the share of `one` is than that of `other`, over the same questions, drawn anew."""
    gaps = torch.tensor(one, dtype=torch.float64) - torch.tensor(other, dtype=torch.float64)
    means = gaps[_draws(len(gaps))].mean(1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(float(gaps.mean()), low, high, len(gaps))


def paired_mean(
    one_losses: Sequence[float], other_losses: Sequence[float], counts: Sequence[int]
) -> Estimate:
    """How much larger the mean of `one` is than that of `other`, a token, over the same texts, drawn anew.

    Losses: sums by text; counts: tokens by text. What makes a text hard is in both and falls out, so this
    interval is far narrower than two intervals side by side. Raises ValueError for unequal lengths.
    """
    return mean([a - b for a, b in zip(one_losses, other_losses, strict=True)], counts)


def _draws(count: int) -> torch.Tensor:
    """(DRAWS, count) indices, always the same: an interval must not change from run to run."""
    return torch.randint(count, (DRAWS, count), generator=torch.Generator().manual_seed(0))
