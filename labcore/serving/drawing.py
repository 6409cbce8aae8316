"""Tokens for a step's rows, by each request's own settings and random numbers; and guesses checked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch
from torch import Tensor

from labcore.generation.flight import Landing
from labcore.generation.sampling import SamplingParams, best, draw, process_logits
from labcore.generation.speculation import check
from labcore.serving.requests import TokenLogprob
from labcore.serving.sequence import Sequence


@dataclass(frozen=True)
class Drawn:
    """What one row got. tokens: accepted guesses, then one token of its own."""

    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


class Draws:
    """The next token of each sequence, the same whoever else is there, on its way to the host.

    logits: (R, vocab) fp32. chosen: (R,) int64, on their device.
    """

    def __init__(self, sequences: Rows[Sequence], logits: Tensor) -> None:
        self.sequences = sequences
        self.chosen = _choose(sequences, logits)
        asked = [row for row, one in enumerate(sequences) if one.request.logprobs is not None]
        self._logits = {row: logits[row : row + 1].clone() for row in asked}  # the next step may write there
        self._landing = Landing(self.chosen)

    def result(self) -> list[Drawn]:
        """Wait for them."""
        tokens = self._landing.tokens()
        return [
            Drawn((token,), _logprobs(sequence, self._logits[row], [token]) if row in self._logits else ())
            for row, (sequence, token) in enumerate(zip(self.sequences, tokens, strict=True))
        ]


def draw_rows(sequences: Rows[Sequence], logits: Tensor) -> list[Drawn]:
    """The next token of each, waited for. logits: (R, vocab) fp32."""
    return Draws(sequences, logits).result()


def _choose(sequences: Rows[Sequence], logits: Tensor) -> Tensor:
    """(R,) int64: by each request's own settings and random numbers."""
    chosen = best(logits)
    for params, rows in _groups(sequences).items():
        if params.greedy and params.repetition_penalty == 1.0:
            continue
        picked = torch.tensor(rows, device=logits.device)
        some = [sequences[row] for row in rows]
        processed = process_logits(logits[picked], params, _history(some, params, logits.device))
        if params.greedy:
            chosen[picked] = best(processed)
        else:
            points = torch.cat([one.points.of(one.num_output) for one in some])
            chosen[picked] = draw(processed, points.to(logits.device))
    return chosen


def check_guesses(sequence: Sequence, logits: Tensor) -> Drawn:
    """The sequence's guesses checked, and one token more; see `generation.speculation.check`.

    logits: (guesses + 1, vocab) fp32.
    """
    params, points = sequence.sampling, None
    if not params.greedy:
        points = sequence.points.of(sequence.num_output, len(sequence.drafted) + 1)
    tokens = check(sequence.drafted, logits, params, points, lambda: sequence.tokens)
    return Drawn(tuple(tokens), _logprobs(sequence, logits[: len(tokens)], tokens))


def _groups(sequences: Rows[Sequence]) -> dict[SamplingParams, list[int]]:
    """Rows by settings."""
    found: dict[SamplingParams, list[int]] = defaultdict(list)
    for row, sequence in enumerate(sequences):
        found[sequence.sampling].append(row)
    return found


def _history(sequences: Rows[Sequence], params: SamplingParams, device: torch.device) -> Tensor | None:
    """(R, longest) tokens so far, short rows filled up with -1; None where no penalty asks."""
    if params.repetition_penalty == 1.0:
        return None
    longest = max(len(one.tokens) for one in sequences)
    rows = [one.tokens + [-1] * (longest - len(one.tokens)) for one in sequences]
    return torch.tensor(rows, device=device)


def _logprobs(sequence: Sequence, logits: Tensor, tokens: Rows[int]) -> tuple[TokenLogprob, ...]:
    """Of each token, and of the best ones beside it; none where nobody asked."""
    count = sequence.request.logprobs
    if count is None:
        return ()
    logs = logits.log_softmax(-1)
    best = logs.topk(min(count, logs.shape[-1]))
    return tuple(
        TokenLogprob(
            token,
            float(logs[row, token]),
            tuple(zip(best.indices[row].tolist(), best.values[row].tolist(), strict=True)),
        )
        for row, token in enumerate(tokens)
    )
