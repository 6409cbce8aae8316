"""Which positions a step computed, and where one head looked from them."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
import torch
from torch import Tensor

# White to blue; what the step did not compute stays transparent, so that the grey behind it shows.
SCALE = ((0.0, "#FFFFFF"), (0.15, "#CFE3F2"), (0.5, "#56A0D3"), (1.0, "#003E66"))
NOT_COMPUTED = "#DEDEDA"


def attention_grid(weights: Tensor, context: int) -> Tensor:
    """(n, T) attention of a step's n queries -> (context, context), NaN where nothing was computed or seen.

    Row i is the query at position i, column j the key at position j. The step's queries are its last n rows;
    columns above the diagonal lie in a query's future.
    """
    new, seen = weights.shape
    grid = torch.full((context, context), float("nan"))
    grid[context - new :, :seen] = weights
    future = torch.triu(torch.ones(context, context, dtype=torch.bool), diagonal=1)
    return grid.masked_fill(future, float("nan"))


def attention_trace(weights: Tensor, tokens: Sequence[str]) -> go.Heatmap:
    """A heatmap of `attention_grid`; tokens: text of each position."""
    context = len(tokens)
    return go.Heatmap(
        z=attention_grid(weights, context).tolist(),
        colorscale=[list(stop) for stop in SCALE],
        zmin=0.0,
        zmax=1.0,
        hovertemplate="query %{y}, key %{x}<br>weight %{z:.3f}<extra></extra>",
        colorbar={"title": {"text": "weight", "side": "right"}, "thickness": 10, "len": 0.62, "y": 0.7},
        hoverongaps=False,
    )


def strongest(weights: Tensor, tokens: Sequence[str]) -> tuple[str, int, float]:
    """The key that the step's last query looks at most: its token, position and weight."""
    last = weights[-1]
    position = int(last.argmax())
    return tokens[position], position, float(last[position])
