"""Runs a planned step on the model: one pass over all rows' new tokens, then each row's draw."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import Protocol

import torch
from torch import Tensor

from labcore.cache.paged import BlockStore
from labcore.generation.memory import memory_told
from labcore.model import Model
from labcore.serving.captured import DecodeGraphs
from labcore.serving.drawing import Drawn, Draws, check_guesses, draw_rows
from labcore.serving.flight import Newest, Result
from labcore.serving.sequence import Plan, Row
from labcore.serving.step_cache import StepCache, arranged


class Runner(Protocol):
    """What an engine needs to take a step: the model, or a model of its costs."""

    def launch(self, plan: Plan) -> Result:
        """Begin a step. The result waits for it and says what each row of the plan got, in the plan's order;
        nothing where a row does not draw."""


class Immediate:
    """A runner whose steps are over when they are launched."""

    def execute(self, plan: Plan) -> list[Drawn]:
        """What each row of the plan got."""
        raise NotImplementedError

    def launch(self, plan: Plan) -> Result:
        """As Runner says."""
        found = self.execute(plan)
        return lambda: found


class ModelRunner:
    """The real one. graphs: what decode steps are replayed from, where there are any."""

    def __init__(self, model: Model, store: BlockStore, graphs: DecodeGraphs | None = None) -> None:
        self.model, self.store, self.graphs = model, store, graphs
        self._newest = Newest()

    @torch.inference_mode()
    def launch(self, plan: Plan) -> Result:
        """One pass of the Transformer, and the draws, on a GPU without waiting for either."""
        rows = arranged(plan.rows)
        drawing = [index for index, row in enumerate(rows) if row.draws and not row.sequence.lingers]
        sequences = [rows[index].sequence for index in drawing]
        with memory_told(self.model):
            logits = self._logits(rows, drawing)
            if any(sequence.drafted for sequence in sequences):
                found = _checked([rows[index] for index in drawing], logits)
                return lambda: _in_order(plan, rows, drawing, found)
            draws = Draws(sequences, logits[: len(drawing)])
        self._newest.keep(sequences, draws.chosen)
        return lambda: _in_order(plan, rows, drawing, draws.result())

    def _logits(self, rows: list[Row], drawing: list[int]) -> Tensor:
        """(M, vocab) fp32: for each drawing row its newest token's, and those of its guesses."""
        if all(row.new == 1 for row in rows):
            every = self._batch(rows)
            return every.float() if len(drawing) == len(rows) else every[drawing].float()
        cache = StepCache(self.store, rows)
        tokens = cache.tokens(self._newest)
        kept = _kept(cache, rows, drawing) if drawing else torch.zeros(1, dtype=torch.int64)
        found: Tensor = self.model.transformer(tokens, cache, logits_to_keep=kept.to(tokens.device))[0]
        return found.float()

    def _batch(self, rows: list[Row]) -> Tensor:
        """(R, vocab): of a step of single tokens."""
        if self.graphs and self.graphs.take(len(rows)):
            return self.graphs(rows, self._newest)
        cache = StepCache(self.store, rows)
        found: Tensor = self.model.transformer(cache.tokens(self._newest), cache, logits_to_keep=1)[:, 0]
        return found


def _in_order(plan: Plan, rows: list[Row], drawing: list[int], found: list[Drawn]) -> list[Drawn]:
    """What was drawn, in the plan's order."""
    by_row = {id(rows[index]): drawn for index, drawn in zip(drawing, found, strict=True)}
    return [by_row.get(id(row), _NOTHING) for row in plan.rows]


_NOTHING = Drawn()


def _checked(rows: list[Row], logits: Tensor) -> list[Drawn]:
    """Guesses checked, and drawn for those who have none."""
    found, at = [], 0
    for row in rows:
        count = len(row.sequence.drafted) + 1
        mine = logits[at : at + count]
        drawn = check_guesses(row.sequence, mine) if count > 1 else draw_rows([row.sequence], mine)[0]
        found.append(drawn)
        at += count
    return found


def _kept(cache: StepCache, rows: list[Row], drawing: Rows[int]) -> Tensor:
    """Places in the packed step whose logits are needed."""
    places: list[int] = []
    for index in drawing:
        end = int(cache.ends[index])
        places += range(end - len(rows[index].sequence.drafted) - 1, end)
    return torch.tensor(places)
