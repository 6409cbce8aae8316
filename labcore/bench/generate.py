"""`labcore bench generate`: greedy decoding of a batch, beside peers and beside the bandwidth ceiling.

The ceiling is measured in turns with the engines: what a shared machine's memory gives changes by the minute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from typing import Any

from labcore.bench.interleave import Samples
from labcore.bench.peers import Contestant, Run, ours, peer
from labcore.bench.trust import measure_trusted
from labcore.bench.usual import random_prompt
from labcore.model import Model
from labcore.perf import costs, roofs
from labcore.perf.roof_measuring import reading
from labcore.shares import is_trusted

OURS = "labcore"


@dataclass(frozen=True)
class Row:
    """One engine. Seconds are medians of whole runs, `spread_s` their interquartile range.

    decode_tokens_per_s: from the median time of a step after the first, where the engine tells it;
    ceiling_share: of what the measured read bandwidth allows; agreement: share of tokens equal to ours.
    trusted: whether that share can be, with the ceiling measured again where it was exceeded.
    """

    engine: str
    seconds: float
    spread_s: float
    tokens_per_s: float
    slower_than_ours: float
    agreement: float
    ttft_s: float | None
    decode_tokens_per_s: float | None
    ceiling_share: float | None
    trusted: bool = True


@dataclass(frozen=True)
class GenerateResult:
    """What was measured, on what, and the ceiling it is held against (tokens/s of decode).

    read_bandwidth: bytes/s of reading as many bytes as a step, in turns with the engines.
    """

    model: str
    dtype: str
    batch: int
    prompt_tokens: int
    new_tokens: int
    repeats: int
    bytes_per_step: int
    read_bandwidth: float
    copy_bandwidth: float
    ceiling_tokens_per_s: float
    rows: list[Row]
    samples_s: dict[str, list[float]]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return asdict(self)


def bench_generate(
    model: Model,
    against: Sequence[str] = (),
    *,
    batch: int = 1,
    prompt_tokens: int = 32,
    new_tokens: int = 64,
    repeats: int = 7,
    progress: Callable[[str], None] = lambda _: None,
) -> GenerateResult:
    """Interleaved whole runs of labcore and the named peers. Raises LabError for a peer that cannot run."""
    prompts = [random_prompt(model, prompt_tokens, seed) for seed in range(batch)]
    contestants = {OURS: ours(model, prompts, new_tokens)}
    contestants |= {name: peer(name, model, prompts, new_tokens) for name in against}
    progress("measuring the roofs")
    found = roofs(model.device)
    moved = _bytes_per_step(model, batch, prompt_tokens + new_tokens // 2)
    contestants[_MEMORY] = _reading(model, moved)
    samples = measure_trusted(
        contestants, lambda _: {_MEMORY: _reading(model, moved)}, partial(_highest_share, batch=batch),
        repeats=repeats, progress=progress,
    )  # fmt: skip
    bandwidth = moved / samples.pop(_MEMORY).median(_seconds)
    ceiling = batch * bandwidth / moved
    return GenerateResult(
        model=model.name,
        dtype=str(model.dtype).removeprefix("torch."),
        batch=batch,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        repeats=repeats,
        bytes_per_step=moved,
        read_bandwidth=bandwidth,
        copy_bandwidth=found.copy_bandwidth,
        ceiling_tokens_per_s=ceiling,
        rows=[_row(name, samples, ceiling) for name in samples],
        samples_s={name: [run.seconds for run in found.results] for name, found in samples.items()},
    )


_MEMORY = "memory"


def _reading(model: Model, size: int) -> Contestant:
    """Reads as many bytes as a step moves, in the fastest way there is."""
    measure = reading(model.device, size, str(model.dtype).removeprefix("torch."))
    return lambda: Run([], size / measure())


def _highest_share(samples: dict[str, Samples[Run]], batch: int) -> float:
    """Of the tokens/s that reading the same bytes allows, over all engines."""
    ceiling = batch / samples[_MEMORY].median(_seconds)
    engines = [mine for name, mine in samples.items() if name != _MEMORY]
    rates = [mine.results[0].count / mine.median(_seconds) for mine in engines]
    return max(*rates, *(_decode_rate(mine) or 0.0 for mine in engines)) / ceiling


def _decode_rate(mine: Samples[Run]) -> float | None:
    """Tokens/s of the steps after the first, where all runs timed them apart."""
    if any(run.tpot_s is None for run in mine.results):
        return None
    return len(mine.results[0].tokens) / mine.median(lambda run: run.tpot_s or 0.0)


def _seconds(run: Run) -> float:
    return run.seconds


def _bytes_per_step(model: Model, batch: int, context: int) -> int:
    """Bytes that a decode step cannot avoid reading: every weight once, and the caches."""
    dtype = str(model.dtype).removeprefix("torch.")
    step = costs.step_costs(model.config, batch, context, dtype=dtype)
    return int(step.weight_bytes + step.kv_read_bytes)


def _row(name: str, samples: dict[str, Samples[Run]], ceiling: float) -> Row:
    mine, base = samples[name], samples[OURS]
    seconds, decode = mine.median(_seconds), _decode_rate(mine)
    tokens, expected = (list(chain(*one.results[0].tokens)) for one in (mine, base))
    share = decode / ceiling if decode else None
    return Row(
        engine=name,
        seconds=seconds,
        spread_s=mine.spread(_seconds),
        tokens_per_s=len(tokens) / seconds,
        slower_than_ours=seconds / base.median(_seconds),
        agreement=sum(a == b for a, b in zip(tokens, expected, strict=True)) / len(expected),
        ttft_s=mine.median(lambda run: run.ttft_s or 0.0) if decode else None,
        decode_tokens_per_s=decode,
        ceiling_share=share,
        trusted=is_trusted(share),
    )
