"""Who asks when, and for how much. One seed makes one workload, the same on every machine.

Times, lengths and tokens are drawn from three streams of their own (Python's `random`, whose numbers are the
same everywhere). So another rate stretches the same gaps and changes nothing else, and two rates can be
compared request by request.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from labcore.errors import LabError

Role = Literal["prompt", "output"]
Kind = Literal["fixed", "uniform", "exp"]

# Mean tokens of a prompt and of an answer in the two data sets of Kwon et al. 2023 (PagedAttention, arXiv
# 2309.06180), section 6.1 and figure 11. Their shape is not published as numbers; here it is exponential.
PUBLISHED: dict[str, dict[Role, float]] = {
    "sharegpt": {"prompt": 161.31, "output": 337.99},
    "alpaca": {"prompt": 19.31, "output": 58.45},
}
PUBLISHED_LONGEST = 2048  # the context of the models they were served with
LONGEST = 8  # means: an exponential length is longer once in 2981 draws
FORMS = "fixed:128, uniform:64-256, exp:200, exp:200:1-512, sharegpt or alpaca"


class WorkloadError(LabError):
    """Lengths, a rate or a trace that no workload can be made of."""


@dataclass(frozen=True)
class LengthSpec:
    """A distribution of lengths in tokens, all within low..high.

    mean: of an exponential one before it is clipped, otherwise of what is drawn. Raises WorkloadError for
    bounds that are below 1 or the wrong way round.
    """

    kind: Kind
    mean: float
    low: int
    high: int

    def __post_init__(self) -> None:
        if not (1 <= self.low <= self.high and 0 < self.mean < math.inf):
            raise WorkloadError(
                f"Lengths of {self.low} to {self.high} tokens with mean {self.mean:g} cannot be drawn; "
                "bounds are whole numbers from 1 up, the lower one first."
            )

    @classmethod
    def fixed(cls, tokens: int) -> LengthSpec:
        """Always as long."""
        return cls("fixed", tokens, tokens, tokens)

    @classmethod
    def uniform(cls, low: int, high: int) -> LengthSpec:
        """Every length from low to high equally often."""
        return cls("uniform", (low + high) / 2, low, high)

    @classmethod
    def exponential(cls, mean: float, low: int = 1, high: int | None = None) -> LengthSpec:
        """Many short, few long; rounded, and clipped to low..high (default: 8 means)."""
        if high is None:
            high = max(low, math.ceil(LONGEST * mean)) if 0 < mean < math.inf else low
        return cls("exp", mean, low, high)

    @classmethod
    def parse(cls, text: str, role: Role) -> LengthSpec:
        """From text such as "fixed:128", "uniform:64-256", "exp:200", "exp:200:1-512", "sharegpt".

        role: sharegpt and alpaca have one mean for prompts and another for answers. Raises WorkloadError.
        """
        name, *rest = text.strip().lower().split(":")
        try:
            return _parse(name, rest, role)
        except (ValueError, IndexError):
            raise WorkloadError(f'"{text}" is no distribution of lengths; write {FORMS}.') from None

    def draw(self, source: random.Random) -> int:
        """One length."""
        if self.kind == "exp":
            return min(max(round(unit_exponential(source) * self.mean), self.low), self.high)
        return self.low + int(source.random() * (self.high - self.low + 1))

    def __str__(self) -> str:
        if self.kind == "fixed":
            return f"fixed:{self.low}"
        head = "uniform" if self.kind == "uniform" else f"exp:{self.mean!r}"
        return f"{head}:{self.low}-{self.high}"


def _parse(name: str, rest: list[str], role: Role) -> LengthSpec:
    if name.isdigit() and not rest:
        return LengthSpec.fixed(int(name))
    if name == "fixed" and len(rest) == 1:
        return LengthSpec.fixed(int(rest[0]))
    if name == "uniform" and len(rest) == 1:
        return LengthSpec.uniform(*_bounds(rest[0]))
    if name in PUBLISHED and len(rest) <= 1:
        low, high = _bounds(rest[0]) if rest else (1, PUBLISHED_LONGEST)
        return LengthSpec.exponential(PUBLISHED[name][role], low, high)
    if name == "exp" and 1 <= len(rest) <= 2:
        return LengthSpec.exponential(float(rest[0]), *(_bounds(rest[1]) if len(rest) == 2 else ()))
    raise ValueError(name)


def _bounds(text: str) -> tuple[int, int]:
    low, high = text.split("-")
    return int(low), int(high)


@dataclass(frozen=True)
class Arrival:
    """One request to come. at_s: seconds after the first; output_tokens: how long its answer shall be.

    prompt: its token ids, prompt_tokens of them.
    """

    id: str
    at_s: float
    prompt_tokens: int
    output_tokens: int
    prompt: tuple[int, ...]


Workload = tuple[Arrival, ...]


def make_workload(
    n: int,
    *,
    rate: float | None = None,
    prompt: LengthSpec | str = "exp:128",
    output: LengthSpec | str = "exp:128",
    shared_prefix: int = 0,
    vocab_size: int = 1000,
    seed: int = 0,
    prompt_seed: int | None = None,
) -> Workload:
    """n requests with random lengths and random tokens.

    rate: requests/s of a Poisson process whose first request comes at 0; None: all come at once.
    shared_prefix: tokens that every prompt begins with, before those of its own drawn length. vocab_size:
    tokens are drawn from 0..vocab_size-1. prompt_seed: draws other tokens for the same times and lengths, so
    that a server which was asked before finds nothing in its prefix cache. Raises WorkloadError.
    """
    _check(n, rate, shared_prefix, vocab_size)
    prompts = prompt if isinstance(prompt, LengthSpec) else LengthSpec.parse(prompt, "prompt")
    outputs = output if isinstance(output, LengthSpec) else LengthSpec.parse(output, "output")
    lengths = _stream(seed, "lengths")
    pairs = [(shared_prefix + prompts.draw(lengths), outputs.draw(lengths)) for _ in range(n)]
    shapes = [(at_s, *pair) for at_s, pair in zip(_poisson_times(n, rate, seed), pairs, strict=True)]
    return _with_prompts(shapes, shared_prefix, vocab_size, seed if prompt_seed is None else prompt_seed)


def retimed(workload: Workload, rate: float) -> Workload:
    """The same requests, their gaps stretched so that they come at `rate` requests/s in the mean.

    Raises WorkloadError where there are no gaps to stretch.
    """
    _check(len(workload), rate, 0, 1)
    start = min(arrival.at_s for arrival in workload)
    span = max(arrival.at_s for arrival in workload) - start
    if span <= 0:
        raise WorkloadError("All requests come at once, so there are no gaps that a rate could stretch.")
    factor = (len(workload) - 1) / rate / span
    return tuple(replace(arrival, at_s=(arrival.at_s - start) * factor) for arrival in workload)


def write_trace(path: Path, workload: Workload) -> None:
    """Write one JSON object a line: at_s, prompt_tokens, output_tokens."""
    fields = ("at_s", "prompt_tokens", "output_tokens")
    lines = [json.dumps({name: getattr(arrival, name) for name in fields}) for arrival in workload]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_trace(
    path: Path, *, limit: int | None = None, shared_prefix: int = 0, vocab_size: int = 1000, seed: int = 0
) -> Workload:
    """A workload from such a file: in order of time, the first at 0, with random tokens.

    limit: only so many requests. shared_prefix: that many tokens of each prompt are the same for all (of
    shorter prompts all). Raises WorkloadError for a file or a line that cannot be read, with its number.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise WorkloadError(f"The trace {path} cannot be read: {error}.") from None
    shapes = [_shape(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    shapes.sort(key=lambda shape: shape[0])  # those of one moment stay in the file's order
    _check(len(shapes[:limit]), None, shared_prefix, vocab_size)
    start = shapes[0][0]
    kept = [(at_s - start, prompt, output) for at_s, prompt, output in shapes[:limit]]
    return _with_prompts(kept, shared_prefix, vocab_size, seed)


def _shape(path: Path, number: int, line: str) -> tuple[float, int, int]:
    try:
        data = json.loads(line)
        at_s, prompt, output = data["at_s"], data["prompt_tokens"], data["output_tokens"]
        whole = all(isinstance(tokens, int) and tokens >= 1 for tokens in (prompt, output))
        if not whole or not math.isfinite(at_s):
            raise ValueError(line)
    except (ValueError, TypeError, KeyError):
        raise WorkloadError(
            f"Line {number} of {path} is no request; write "
            '{"at_s": 0.5, "prompt_tokens": 128, "output_tokens": 64}, both lengths from 1 up.'
        ) from None
    return float(at_s), prompt, output


def unit_exponential(source: random.Random) -> float:
    """An exponential draw of mean 1. Written out: `random.expovariate` may change between versions."""
    return -math.log(1.0 - source.random())


def _stream(seed: int, name: str) -> random.Random:
    return random.Random(f"{name} {seed}")  # a text is hashed with SHA-512: the same on every machine


def _poisson_times(n: int, rate: float | None, seed: int) -> list[float]:
    if rate is None:
        return [0.0] * n
    source, times = _stream(seed, "gaps"), [0.0]
    while len(times) < n:
        times.append(times[-1] + unit_exponential(source))
    return [at / rate for at in times]


def _with_prompts(
    shapes: Iterable[tuple[float, int, int]], shared_prefix: int, vocab_size: int, seed: int
) -> Workload:
    """Arrivals with tokens. Each prompt has its own stream: it does not depend on the others' lengths."""
    prefix = _tokens(_stream(seed, "prefix"), shared_prefix, vocab_size)
    arrivals = []
    for index, (at_s, prompt, output) in enumerate(shapes):
        own = _tokens(_stream(seed, f"prompt {index}"), max(prompt - shared_prefix, 0), vocab_size)
        arrivals.append(Arrival(f"r{index}", at_s, prompt, output, (prefix + own)[:prompt]))
    return tuple(arrivals)


def _tokens(source: random.Random, count: int, vocab_size: int) -> tuple[int, ...]:
    return tuple(int(source.random() * vocab_size) for _ in range(count))


def _check(n: int, rate: float | None, shared_prefix: int, vocab_size: int) -> None:
    if n < 1:
        raise WorkloadError(f"A workload of {n} requests is none; ask for at least 1.")
    if rate is not None and not 0 < rate < math.inf:
        raise WorkloadError(f"A rate of {rate:g} requests/s cannot be; give a number above 0.")
    if shared_prefix < 0 or vocab_size < 1:
        raise WorkloadError(
            f"A shared prefix of {shared_prefix} tokens out of {vocab_size} cannot be drawn; "
            "neither may be negative, and there must be at least one token."
        )
