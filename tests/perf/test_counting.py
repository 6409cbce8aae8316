"""Counting what a function does: against numbers one can work out on paper."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import labcore
from labcore.cache import create
from labcore.perf.costs import step_costs
from labcore.perf.counting import Counted, count

FLOAT = 4


def test_a_matrix_product_reads_two_matrices_and_writes_one() -> None:
    left, right = torch.randn(8, 16), torch.randn(16, 32)
    counted = count(lambda: left @ right)
    assert counted == Counted(2 * 8 * 16 * 32, FLOAT * (8 * 16 + 16 * 32 + 8 * 32), 1)
    assert counted.to_dict()["operations"] == 1


def test_an_addition_reads_two_and_writes_one() -> None:
    a, b = torch.ones(100, dtype=torch.float16), torch.ones(100, dtype=torch.float16)
    assert count(lambda: a + b) == Counted(0, 600, 1, "float16")
    assert count(lambda: a * a).bytes == 400  # one tensor given twice is read once


def test_in_place_reads_and_writes_and_a_copy_only_writes() -> None:
    a, b = torch.ones(100), torch.ones(100)
    assert count(lambda: a.add_(b)).bytes == 3 * 100 * FLOAT
    assert count(lambda: a.copy_(b)).bytes == 2 * 100 * FLOAT
    assert count(lambda: a.zero_()).bytes == 100 * FLOAT
    assert count(lambda: torch.add(a, b, out=a)).bytes == 2 * 100 * FLOAT
    assert count(lambda: a[10:20].fill_(1.0)).bytes == 10 * FLOAT


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x.view(-1),
        lambda x: x.t()[2:4].unsqueeze(0).expand(5, -1, -1),
        lambda x: x.reshape(2, -1).split(2),
        lambda x: x.detach(),
        lambda x: torch.empty_like(x),
    ],
)
def test_a_view_costs_nothing(look: object) -> None:
    x = torch.ones(6, 6)
    assert count(lambda: look(x)) == Counted(0, 0, 0)  # type: ignore[operator]


def test_softmax_reads_and_writes_once() -> None:
    x = torch.randn(4, 25)
    assert count(lambda: x.softmax(-1)) == Counted(0, 2 * 100 * FLOAT, 1)


def test_an_expanded_tensor_is_read_once() -> None:
    row, x = torch.ones(1, 10).expand(50, 10), torch.ones(50, 10)
    assert count(lambda: x + row).bytes == (2 * 500 + 10) * FLOAT


def test_a_lookup_reads_the_rows_that_it_returns() -> None:
    table, ids = torch.randn(1000, 8), torch.tensor([1, 2, 3])
    rows = 3 * 8 * FLOAT
    assert count(lambda: F.embedding(ids, table)).bytes == 2 * rows + ids.nbytes
    assert count(lambda: table[ids]).bytes == 2 * rows + ids.nbytes
    assert count(lambda: table.index_copy_(0, ids, torch.ones(3, 8))).bytes == 3 * rows + ids.nbytes


@pytest.mark.parametrize("inference", [False, True])
def test_a_linear_layer_is_counted_as_its_product(inference: bool) -> None:
    """In inference mode PyTorch hands it over whole."""
    x, weight = torch.randn(2, 3, 16), torch.randn(32, 16)
    with torch.inference_mode(inference):
        counted = count(lambda: F.linear(x, weight))
    assert counted.flops == 2 * 6 * 16 * 32
    assert counted.bytes == FLOAT * (6 * 16 + 16 * 32 + 6 * 32)
    assert counted.operations == 1


@pytest.mark.parametrize("masked", [False, True])
def test_attention_counts_its_whole_rectangle(masked: bool) -> None:
    q, k = torch.randn(2, 4, 3, 8), torch.randn(2, 4, 7, 8)
    mask = torch.ones(3, 7, dtype=torch.bool) if masked else None
    counted = count(lambda: F.scaled_dot_product_attention(q, k, k, attn_mask=mask))
    assert counted.flops == 2 * 2 * (2 * 4 * 3 * 7 * 8)


def test_an_error_passes_and_leaves_nothing_on() -> None:
    with pytest.raises(ZeroDivisionError):
        count(lambda: 1 / 0)
    assert count(lambda: None) == Counted(0, 0, 0)


def test_it_agrees_with_the_costs_worked_out_from_the_shape() -> None:
    model = labcore.load("story")
    cache = create(
        "contiguous", model.config, batch_size=1, capacity=64, device=model.device, dtype=model.dtype
    )
    with torch.inference_mode():
        counted = count(lambda: model.transformer(torch.arange(32)[None], cache, logits_to_keep=1))
    expected = step_costs(model.config, 1, 32, 32, dtype="float32")
    assert counted.flops == expected.flops
    assert expected.bytes <= counted.bytes < 2 * expected.bytes  # unfused operators move more
