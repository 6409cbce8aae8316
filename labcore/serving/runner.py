"""Runs a planned step on the model: one pass over all rows' new tokens, then each row's draw."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import Protocol

import torch
from torch import Tensor

from labcore.cache.paged import BlockStore
from labcore.generation.memory import memory_told
from labcore.model import Model
from labcore.serving.drawing import Drawn, check_guesses, draw_rows
from labcore.serving.sequence import Plan, Row
from labcore.serving.step_cache import StepCache, arranged


class Runner(Protocol):
    """What an engine needs to take a step: the model, or a model of its costs."""

    def execute(self, plan: Plan) -> list[Drawn]:
        """What each row of the plan got, in the plan's order; nothing where a row does not draw."""


class ModelRunner:
    """The real one."""

    def __init__(self, model: Model, store: BlockStore) -> None:
        self.model, self.store = model, store

    @torch.inference_mode()
    def execute(self, plan: Plan) -> list[Drawn]:
        """One pass of the Transformer, and the draws."""
        rows = arranged(plan.rows)
        drawing = [index for index, row in enumerate(rows) if row.draws and not row.sequence.lingers]
        with memory_told(self.model):
            logits = self._logits(rows, drawing)
        found = self._draw([rows[index] for index in drawing], logits)
        by_sequence = {id(rows[index].sequence): drawn for index, drawn in zip(drawing, found, strict=True)}
        return [by_sequence.get(id(row.sequence), Drawn()) for row in plan.rows]

    def _logits(self, rows: list[Row], drawing: list[int]) -> Tensor:
        """(M, vocab) fp32: for each drawing row its newest token's, and those of its guesses."""
        cache = StepCache(self.store, rows)
        tokens = cache.tokens()
        if cache.batched:
            every: Tensor = self.model.transformer(tokens, cache, logits_to_keep=1)[:, 0]
            return every.float() if len(drawing) == len(rows) else every[drawing].float()
        kept = _kept(cache, rows, drawing) if drawing else torch.zeros(1, dtype=torch.int64)
        found: Tensor = self.model.transformer(tokens, cache, logits_to_keep=kept.to(tokens.device))[0]
        return found.float()

    def _draw(self, rows: list[Row], logits: Tensor) -> list[Drawn]:
        if not any(row.sequence.drafted for row in rows):
            return draw_rows([row.sequence for row in rows], logits[: len(rows)]) if rows else []
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
