"""Exercises and hunts of lesson 7: golden values, agreement with labcore.quant, mistakes, planted bugs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from labcore.kernels.packing import unpack
from labcore.lab import exercises, hunts
from labcore.lab.exercises import TODO, lesson07
from labcore.quant.formats import Format, apply_grid, grid, quantize_tensor
from labcore.quant.gptq import gptq
from labcore.quant.smoothquant import smoothing
from tests.lab.tasks import knows_its_mistakes, told, with_its_bug

TASKS = exercises.of_lesson("07")
HUNTS = hunts.of_lesson("07")
UPPER = torch.tensor([[2.0, 1.0, -0.5], [0.0, 1.0, 0.25], [0.0, 0.0, 1.0]])


def test_the_lesson_is_registered() -> None:
    assert [task.id for task in TASKS] == [f"07.{n}" for n in range(1, 7)]
    assert [task.difficulty for task in TASKS] == [1, 2, 2, 2, 2, 3]
    assert [bug.id for bug in HUNTS] == ["07.A", "07.B"]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.id)
@pytest.mark.parametrize("seed", range(5))
def test_every_solution_passes_and_every_mistake_is_named(
    task: exercises.Exercise, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    knows_its_mistakes(task, seed, monkeypatch)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.id)
def test_unfinished_answers_are_not_attempted(task: exercises.Exercise) -> None:
    assert not task.check(TODO).attempted
    assert not task.check(lambda *_: TODO).attempted
    assert "asks for a function" in task.check(4.125).message


def test_golden_effective_bits() -> None:
    assert lesson07.effective_bits(4, 128, 16, 0) == 4.125
    assert lesson07.effective_bits(4, 32, 16, 8) == 4.75


def test_golden_codes() -> None:
    assert lesson07.absmax(torch.tensor([0.1, -0.2, 0.3, 60.0]), 8).tolist() == [0, 0, 1, 127]
    codes, scale, zero = lesson07.with_zero_point(torch.tensor([-1.0, 0.0, 0.4, 2.0]), 2)
    assert (codes.tolist(), float(scale), float(zero)) == ([0, 1, 1, 3], 1.0, 1.0)
    for sign, expected in ((1, 0), (-1, 15)):
        _, scale, zero = lesson07.with_zero_point(sign * torch.tensor([3.0, 30.0]), 4)
        assert (float(scale), float(zero)) == (2.0, expected)


def test_golden_smoothing_leaves_both_sides_alike() -> None:
    inputs, weight = torch.tensor([1.0, 64.0]), torch.tensor([[0.5, -0.25], [-1.0, 0.125]])
    s = lesson07.smooth(inputs, weight, 0.5)
    assert s.tolist() == [1.0, 16.0]
    assert (inputs / s).tolist() == (weight * s).abs().amax(0).tolist() == [1.0, 4.0]


def test_golden_steps() -> None:
    llama, a100 = (1024, 524_288, 6.74e9), (312e12, 2039e9)
    steps = [lesson07.step_time(1, *llama, bits, *a100) * 1e3 for bits in (16, 8, 4)]
    assert steps == pytest.approx([6.87, 3.57, 1.92], abs=0.005)
    assert steps[0] / steps[2] == pytest.approx(3.6, abs=0.05)
    busy = [lesson07.step_time(1000, *llama, bits, *a100) for bits in (16, 4)]
    assert busy[0] == busy[1]


def test_golden_correction() -> None:
    weight = torch.tensor([[1.2, 0.4, 0.0], [-0.7, 1.0, 2.0]])
    found = lesson07.push_on(weight, torch.tensor([1.0, -1.0]), 0, UPPER)
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.3, 0.05], [-1.0, 0.85, 2.075]]))


def layer(rows: int = 6, columns: int = 32) -> tuple[Tensor, Tensor]:
    """Weights, and inputs that have something in common."""
    stream = torch.Generator().manual_seed(7)
    shared = torch.randn(256, 1, generator=stream)
    return torch.randn(rows, columns, generator=stream), torch.randn(256, columns, generator=stream) + shared


def test_solutions_agree_with_the_formats() -> None:
    for fmt, zero_bits in ((Format("int4", "group", 128), 0), (Format("int3", "group", 64, False), 8)):
        assert lesson07.effective_bits(fmt.bits, fmt.group, 16, zero_bits) == fmt.effective_bits((8, 256))
    weight = layer(1)[0] * 1e-5  # so small that scales stay in fp32
    for bits in (8, 4, 3, 2):
        even = quantize_tensor(weight, Format(f"int{bits}", "channel"))
        assert torch.equal(lesson07.absmax(weight[0], bits), even.integers()[0])
        fmt = Format(f"int{bits}", "channel", symmetric=False)
        scale, zero = grid(weight, fmt)
        codes = quantize_tensor(weight, fmt).integers()
        assert zero is not None
        for found, wanted in zip(
            lesson07.with_zero_point(weight[0], bits), (codes[0], scale[0, 0], zero[0, 0]), strict=True
        ):
            torch.testing.assert_close(found, wanted.float(), rtol=1e-5, atol=0)


def test_smoothing_agrees_with_labcore() -> None:
    weight, inputs = layer()
    for alpha in (0.0, 0.3, 0.5, 1.0):
        wanted = smoothing(inputs.abs().amax(0), weight, alpha)
        torch.testing.assert_close(lesson07.smooth(inputs.abs().amax(0), weight, alpha), wanted)


def test_steps_of_the_exercise_make_up_gptq() -> None:
    weight, inputs = layer()
    hessian = inputs.T @ inputs * (2 / len(inputs))
    upper = torch.linalg.cholesky(torch.linalg.inv(hessian.double()), upper=True).float()
    fmt = Format("int4", "channel")
    scale = grid(weight, fmt)[0].float()[:, 0]
    work = weight
    for j in range(weight.shape[1]):
        work = lesson07.push_on(work, (work[:, j] / scale).round().clamp(-7, 7) * scale, j, upper)
    torch.testing.assert_close(work, gptq(weight, hessian, fmt, damping=0.0)[0].dequantize())


def test_the_correction_is_the_best_that_later_columns_can_do() -> None:
    """Least squares: with column 0 fixed, nothing else makes the output's error smaller."""
    weight, inputs = layer(4, 5)
    hessian = (inputs.T @ inputs).double()
    upper = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True).float()
    column = weight[:, 0].round()
    lost = (weight[:, 0] - column).double()
    best = torch.linalg.lstsq(inputs[:, 1:].double(), inputs[:, :1].double() * lost).solution.T
    found = lesson07.push_on(weight, column, 0, upper)
    torch.testing.assert_close(found[:, 1:], weight[:, 1:] + best.float(), rtol=1e-4, atol=1e-5)


def test_working_in_place_hides_no_mistake() -> None:
    def in_place(weight: Tensor, quantized: Tensor, j: int, upper: Tensor) -> Tensor:
        weight[:, j] = quantized
        return weight

    assert "columns after j stay as they were" in exercises.find("07.6").check(in_place).message


@pytest.mark.parametrize("bug", HUNTS, ids=lambda bug: bug.id)
def test_hunts_pass_without_their_bug_and_fail_with_it(bug: hunts.Hunt) -> None:
    assert bug.check(bug.original).ok
    assert not bug.check(with_its_bug(bug)).ok
    home = hunts.registry.at_home(with_its_bug(bug), bug.target)
    assert not bug.check(home).ok, "as a notebook runs it"
    assert bug.check(bug.original).ok, "a check leaves nothing behind"


def test_hunts_tell_what_is_wrong() -> None:
    scales, order = (told(bug.id, with_its_bug(bug)) for bug in HUNTS)
    assert scales.startswith("1 of 6 layers are right. A layer of 64 × 64 weights and 64 × 1 scales raises ")
    assert "raises nothing and is wrong: relative error 0." in scales
    assert "A layer of 32 × 64 weights and 32 × 1 scales ends in RuntimeError: The size of tensor" in scales
    assert order.startswith("1 of 6 tests are right. Unpacking 4 bits changes ")
    assert "The product with a 64 × 64 layer of 4 bits raises nothing and is wrong: relative error" in order


def test_the_scales_bug_is_silent_on_square_layers_only() -> None:
    suspect = with_its_bug(hunts.find("07.A"))
    q, scale = torch.ones(4, 4), torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    assert torch.equal(suspect(q, scale), apply_grid(q, scale).T)
    with pytest.raises(RuntimeError, match="must match"):
        suspect(torch.ones(4, 6), scale)


@pytest.mark.parametrize(
    ("suspect", "words"),
    [
        (lambda *_: None, "gives NoneType, and should give a tensor of [64, 64]."),
        (lambda q, *_: q[:, :3], "gives a tensor of [64, 3]"),
        (lambda q, *_: q * float("nan"), "relative error nan"),
        (lambda *_: 1 / 0, "ends in ZeroDivisionError: division by zero."),
    ],
)
def test_suspects_that_fail_are_judged(suspect: Callable[..., Any], words: str) -> None:
    assert "0 of 6 layers" in told("07.A", suspect)
    assert words in told("07.A", suspect)
    assert "ends in ZeroDivisionError" in told("07.B", lambda *_: 1 / 0)


def test_three_bits_are_judged_too() -> None:
    def two_planes_swapped(packed: Tensor, bits: int) -> Tensor:
        codes = unpack(packed, bits)
        return codes if bits != 3 else (codes >> 1) | ((codes & 1) << 2)

    assert told("07.B", two_planes_swapped).startswith("5 of 6 tests are right. Unpacking 3 bits changes ")
