"""First weights that look things up.

Recall is a lookup by the words nearby: one head copies the token before, another matches it and finds what
followed (an induction head, Olsson et al. 2022). Training finds neither half before it has the other, and
waits for millions of tokens. So both are given at the start, as weights that training may change:

* in layer 0, heads copy a short code of the token 1, 2, 3, ... places back into a part of the residual stream
  of their own;
* in layers 1 and 2, heads compare such codes, and write the token that a code found there stands for.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from labcore.config import ModelConfig
from labcore.model.rope import inverse_frequencies
from labcore.model.transformer import Transformer

_SHARP_PAIRS = 4  # rotary pairs that turn fast enough to tell neighbours apart
_FAST_PAIRS = 5  # rotary pairs that turn too fast to compare tokens far apart
_SHARPNESS = 7.0
_COPY, _MATCH, _TELL = 0.25, 3.0, 0.15  # strength of the copies, the comparisons, and what is found
# How far back each head of layer 0 begins by looking; the distances whose codes are kept, most useful first.
_HEAD_DISTANCES = (1, 2, 3, 8, 4, 5, 6, 7)
_KEPT = (1, 4, 5, 6, 7, 2)


class Lookup(NamedTuple):
    """A group of heads that compares codes. Distances name codes: 0 is the token itself, 1 the one before."""

    layer: int
    group: int
    key: int
    value: tuple[int, ...]
    queries: tuple[int, ...]


LOOKUPS = (
    # behind an earlier occurrence of this token: the second part of a name
    Lookup(1, 0, key=1, value=(0,), queries=(0,)),
    # before an earlier occurrence of a token of the question: a thing's colour or number
    Lookup(1, 1, key=0, value=(1,), queries=(4, 5, 6, 1)),
    # some way before it: whose it was
    Lookup(2, 0, key=0, value=(4, 5, 6, 7), queries=(4, 5, 6)),
)
# For a model whose layers have one group each.
SINGLE_LOOKUPS = (LOOKUPS[0], Lookup(2, 0, key=0, value=(1,), queries=(4, 5)))


@torch.no_grad()
def look_back(model: Transformer) -> None:
    """Write these first weights into a freshly drawn model."""
    config = model.config
    constant, codes = directions(config)
    model.embed_tokens.weight += constant.to(model.embed_tokens.weight)
    _copy_neighbours(model, constant, codes)
    slow = torch.tensor([i % (config.head_dim // 2) >= _FAST_PAIRS for i in range(config.head_dim)])
    for lookup in LOOKUPS if config.num_key_value_heads > 1 else SINGLE_LOOKUPS:
        _compare(model, lookup, codes, _MATCH * slow[:, None])


def directions(config: ModelConfig) -> tuple[Tensor, dict[int, Tensor]]:
    """Mutually orthogonal directions of the residual stream: a constant one (hidden,), and by distance the
    (head_dim, hidden) rows of the token's own code (0) and of the places where copies of codes are put."""
    size, hidden = config.head_dim, config.hidden_size
    count = min(1 + len(_KEPT), (hidden - 1) // size)
    draw = torch.randn(hidden, 1 + count * size, generator=torch.Generator().manual_seed(7))
    draw[:, 0] = 1.0
    basis = torch.linalg.qr(draw).Q.T
    return basis[0].abs(), dict(zip((0, *_KEPT), basis[1:].split(size), strict=False))


def _copy_neighbours(model: Transformer, constant: Tensor, codes: dict[int, Tensor]) -> None:
    """Layer 0: the same key everywhere, turned back by a head's distance; the value is the token's code."""
    config, attention = model.config, model.layers[0].attention
    for group in range(config.num_key_value_heads):
        _rows(model, 0, "k", group).copy_(_turned(config, 0) * constant)
        _rows(model, 0, "v", group).copy_(codes[0])
    for head, distance in enumerate(_HEAD_DISTANCES[: config.num_attention_heads]):
        _rows(model, 0, "q", head).copy_(_turned(config, distance) * constant)
        if distance in codes:
            size = config.head_dim
            attention.o_proj.weight[:, head * size : (head + 1) * size] = _COPY * codes[distance].T


def _compare(model: Transformer, lookup: Lookup, codes: dict[int, Tensor], match: Tensor) -> None:
    """Score high where the key's code equals the query's; tell which token the value's code stands for."""
    size, layer, group = model.config.head_dim, lookup.layer, model.config.queries_per_kv_head
    values = [codes[distance] for distance in lookup.value if distance in codes]
    _rows(model, layer, "k", lookup.group).copy_(match * codes[lookup.key])
    _rows(model, layer, "v", lookup.group).copy_(torch.stack(values).sum(0) / math.sqrt(len(values)))
    for number, distance in enumerate(lookup.queries):
        if distance in codes:
            head = lookup.group * group + number
            _rows(model, layer, "q", head).copy_(match * codes[distance])
            out = model.layers[layer].attention.o_proj.weight
            out[:, head * size : (head + 1) * size] = _TELL * codes[0].T


def _rows(model: Transformer, layer: int, part: str, head: int) -> Tensor:
    """The (head_dim, hidden) rows of a layer's query, key or value head."""
    config = model.config
    heads = {"q": 0, "k": config.num_attention_heads}
    heads["v"] = heads["k"] + config.num_key_value_heads
    start = (heads[part] + head) * config.head_dim
    return model.layers[layer].attention.qkv_proj.weight[start : start + config.head_dim]


def _turned(config: ModelConfig, distance: int) -> Tensor:
    """(head_dim, 1): the fast pairs of a query that is largest `distance` tokens back, scaled to be sharp."""
    size = config.head_dim
    angles = inverse_frequencies(config)[:_SHARP_PAIRS] * distance
    head = torch.zeros(size, 1)
    head[:_SHARP_PAIRS, 0] = angles.cos()
    head[size // 2 : size // 2 + _SHARP_PAIRS, 0] = -angles.sin()
    # After the norm, the constant part of the stream has length sqrt(hidden / 2): the token's own is as long.
    return head * math.sqrt(_SHARPNESS * math.sqrt(size)) / math.sqrt(config.hidden_size / 2)
