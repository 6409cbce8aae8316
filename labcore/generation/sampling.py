"""From logits to a token: penalty, temperature, top-k, top-p, min-p, and the draw.

The order is the one of vLLM and transformers, and it matters: top-p asks how much probability the best tokens
hold *at this temperature*, so temperature comes first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from labcore.errors import SamplingError

COLD = 1e-5  # logits over less could overflow, and the likeliest token is all but certain
MOST_PENALTY = 1e6


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen. The defaults are greedy decoding.

    temperature: 0, or less than COLD, is greedy; above, it divides the logits. top_k: keep the k best (0:
    all). top_p: keep the smallest set of best tokens whose probabilities reach p (Holtzman et al. 2019).
    min_p: keep tokens at least min_p times as likely as the best. repetition_penalty: above 1 makes tokens
    already in the prompt or the answer less likely (Keskar et al. 2019). Raises SamplingError for values that
    cannot mean anything.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _require(
            _finite(self.temperature) and self.temperature >= 0,
            "temperature",
            self.temperature,
            "0 (greedy) or above",
        )
        _require(
            _whole(self.top_k) and self.top_k >= 0, "top_k", self.top_k, "a whole number, 0 (off) or above"
        )
        _require(
            _finite(self.top_p) and 0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1 (off)"
        )
        _require(_finite(self.min_p) and 0 <= self.min_p <= 1, "min_p", self.min_p, "from 0 (off) to 1")
        _require(
            _finite(self.repetition_penalty) and 1 / MOST_PENALTY <= self.repetition_penalty <= MOST_PENALTY,
            "repetition_penalty", self.repetition_penalty, "from 1e-6 to 1e6 (1 is off)",
        )  # fmt: skip
        _require(
            _whole(self.seed) and 0 <= self.seed < 2**63,
            "seed",
            self.seed,
            "a whole number from 0 to 2**63 - 1",
        )

    @property
    def greedy(self) -> bool:
        """Whether the best token is always taken."""
        return self.temperature < COLD


def _require(holds: bool, name: str, value: object, meaning: str) -> None:
    if not holds:
        raise SamplingError(f"{name} is {value!r}; it must be {meaning}.")


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def process_logits(logits: Tensor, params: SamplingParams, history: Tensor | None = None) -> Tensor:
    """Logits as the draw sees them: (B, vocab) fp32 -> (B, vocab), -inf where a token is cut.

    history: (B, t) int64 tokens so far, prompt included, for the repetition penalty; -1 is skipped.
    With temperature 0 only the penalty applies, since the cuts never remove the best token.
    """
    if params.repetition_penalty != 1.0 and history is not None:
        logits = _penalise(logits, params.repetition_penalty, history)
    if params.greedy:
        return logits
    logits = logits / params.temperature
    if 0 < params.top_k < logits.shape[-1]:
        logits = _keep_top_k(logits, params.top_k)
    if params.top_p < 1.0:
        logits = _keep_top_p(logits, params.top_p)
    if params.min_p > 0.0:
        best = logits.max(-1, keepdim=True).values
        logits = logits.masked_fill(logits < best + math.log(params.min_p), -math.inf)
    return logits


def _penalise(logits: Tensor, penalty: float, history: Tensor) -> Tensor:
    """Divide a seen token's positive logit by the penalty, multiply a negative one: both get less likely."""
    seen = torch.zeros(logits.shape[0], logits.shape[1] + 1, dtype=torch.bool, device=logits.device)
    seen.scatter_(1, history.remainder(logits.shape[1] + 1), True)  # -1 lands in the extra column
    weaker = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen[:, :-1], weaker, logits)


def _keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Exactly the k best: of tokens that tie at the edge, as many as there is room for."""
    best = logits.topk(k, dim=-1)
    return torch.full_like(logits, -math.inf).scatter_(1, best.indices, best.values)


def _keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Cut a token when the better ones already reach p; the best token always stays."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(-1)
    cut = probabilities.cumsum(-1) - probabilities >= p
    cut[:, 0] = False  # where p is 0 in fp32, too
    return torch.full_like(logits, -math.inf).scatter_(1, order, ordered.masked_fill(cut, -math.inf))


class Points:
    """The random numbers of one sequence, in [0, 1) and the same on every device: one for each new token.

    Number i belongs to new token i, however the steps are cut and however often one of them is taken again.
    """

    def __init__(self, seed: int) -> None:
        self._stream = torch.Generator("cpu").manual_seed(seed)
        self._first, self._drawn = 0, torch.empty(0, dtype=torch.float32, device="cpu")

    def of(self, first: int, count: int = 1) -> Tensor:
        """(count,) fp32: those of new tokens first, first + 1, …; the ones before are forgotten."""
        if (missing := first + count - self._first - len(self._drawn)) > 0:
            new = torch.rand(missing, generator=self._stream, dtype=torch.float32, device="cpu")
            self._drawn = torch.cat([self._drawn, new])
        self._drawn, self._first = self._drawn[first - self._first :], first
        return self._drawn[:count]


class Sampler:
    """Draws tokens for a batch, step by step. Row i has its own random numbers (seed + i).

    A sequence therefore gets the same tokens whatever its neighbours in the batch do.
    """

    def __init__(self, params: SamplingParams, rows: int) -> None:
        self.params = params
        self.points = [] if params.greedy else [Points(params.seed + row) for row in range(rows)]
        self.drawn = 0  # tokens of each row

    def __call__(self, logits: Tensor, history: Tensor | None = None) -> Tensor:
        """(B, vocab) fp32 logits, (B, t) tokens so far -> (B,) int64 tokens, NO_TOKEN where none can be."""
        processed = process_logits(logits, self.params, history)
        self.drawn += 1
        if self.params.greedy:
            return best(processed)
        points = torch.cat([row.of(self.drawn - 1) for row in self.points])
        return draw(processed, points.to(logits.device))


# Of a row whose logits are NaN or infinite. It comes to the host as tokens do, so that nobody waits for the
# device to know; whoever takes tokens off the device raises (`Answer.push`), whoever feeds them clamps to 0.
NO_TOKEN = -1

PARTS = 128  # of a row, where there are too few rows for a GPU's multiprocessors


def best(logits: Tensor) -> Tensor:
    """(B, vocab) -> (B,) int64: argmax, or NO_TOKEN where the largest is NaN or infinite.

    In parts where PyTorch's own lets one multiprocessor of a GPU read a whole row.
    """
    rows, vocab = logits.shape
    parted = logits.is_cuda and rows <= 16 and vocab % PARTS == 0
    top, chosen = _best_of_parts(logits) if parted else logits.max(-1)
    return torch.where(top.abs() < math.inf, chosen, NO_TOKEN)  # a NaN is below nothing, and the largest


def _best_of_parts(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) the largest and its place: of each part first, then of those."""
    parts = logits.unflatten(-1, (PARTS, -1))
    tops, places = parts.max(-1)
    top, part = tops.max(-1, keepdim=True)
    return top.squeeze(1), (part * parts.shape[-1] + places.gather(1, part)).squeeze(1)


def draw(logits: Tensor, points: Tensor) -> Tensor:
    """Invert the distribution function: (B, vocab) logits, (B,) points in [0, 1) -> (B,) tokens.

    Never returns a token of probability zero, whatever rounding does to the sum; NO_TOKEN where a logit is
    NaN or infinite, which makes the sum NaN.
    """
    sums = logits.softmax(-1).double().cumsum(-1)
    targets = points.double()[:, None] * sums[:, -1:]
    # right=True: the first token whose running sum is strictly above the target has probability above 0
    chosen = torch.searchsorted(sums, targets, right=True)
    last_possible = (sums >= sums[:, -1:]).int().argmax(-1, keepdim=True)
    chosen = torch.minimum(chosen, last_possible)
    return torch.where(sums[:, -1:] > 0, chosen, NO_TOKEN).squeeze(1)
