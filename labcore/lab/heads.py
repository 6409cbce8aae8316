"""One model with many, few and one KV head: bytes and decode time, predicted and measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from labcore.bench.cache import bench_cache, filled, step_of
from labcore.bench.interleave import interleave
from labcore.config import ModelConfig
from labcore.lab.sweeps import roof_of
from labcore.lab.units import seconds as as_time
from labcore.lab.units import si, significant
from labcore.model import Model, Transformer
from labcore.perf.costs import StepCosts, step_costs
from labcore.perf.roofline import Roofs

SHAPE = ModelConfig(
    hidden_size=512, num_hidden_layers=4, num_attention_heads=16, num_key_value_heads=16, head_dim=64,
    intermediate_size=1024, vocab_size=1024, max_position_embeddings=16_384,
)  # fmt: skip
KV_HEADS = {"MHA": 16, "GQA": 4, "MQA": 1}
WARMUP = 2


@dataclass(frozen=True)
class HeadRun:
    """One sharing. nbytes: allocated for the cache; predicted_s: bytes of a step over the read bandwidth."""

    kind: str
    kv_heads: int
    nbytes: int
    costs: StepCosts
    predicted_s: float
    seconds: float
    spread_s: float


@dataclass(frozen=True)
class HeadsExperiment:
    """All sharings at one context and batch."""

    context: int
    batch: int
    runs: tuple[HeadRun, ...]

    def run(self, kind: str) -> HeadRun:
        """One by name."""
        return next(run for run in self.runs if run.kind == kind)

    def ratio(self, kind: str) -> float:
        """Time of MHA over time of this kind."""
        return self.run("MHA").seconds / self.run(kind).seconds

    def rows(self) -> list[dict[str, Any]]:
        """The exact numbers."""
        return [
            {
                "attention": run.kind,
                "KV heads": run.kv_heads,
                "cache": si(run.nbytes, "B"),
                "cache read a step": si(run.costs.kv_read_bytes, "B"),
                "weights read a step": si(run.costs.weight_bytes, "B"),
                "bandwidth model (ms)": run.predicted_s * 1e3,
                "measured (ms)": run.seconds * 1e3,
                "spread, IQR (ms)": run.spread_s * 1e3,
            }
            for run in self.runs
        ]

    def finding(self) -> str:
        """What sharing saved."""
        mha, gqa = self.run("MHA"), self.run("GQA")
        return (
            f"{self.batch} × {self.context:,} tokens: GQA holds {si(gqa.nbytes, 'B')} where MHA holds "
            f"{si(mha.nbytes, 'B')} ({significant(mha.nbytes / gqa.nbytes)}× less), and a step takes "
            f"{as_time(gqa.seconds)} instead of {as_time(mha.seconds)}, "
            f"{significant(self.ratio('GQA'))}× less. The "
            f"bandwidth model says {significant(mha.predicted_s / gqa.predicted_s)}×."
        )


def random_model(kv_heads: int, seed: int = 0) -> Model:
    """A model of SHAPE with so many KV heads and random weights, on the GPU where there is one."""
    config = SHAPE.with_(num_key_value_heads=kv_heads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(seed)
    transformer = Transformer(config).requires_grad_(False).to(device)
    transformer.reset_rope()
    return Model(f"{kv_heads} KV heads", config, transformer, None, random_weights=True)


def compare_heads(
    context: int = 4096, batch: int = 2, *, repeats: int = 7, roofs: Roofs | None = None
) -> HeadsExperiment:
    """Fill a cache of each sharing and time decode steps, in turns."""
    models = {kind: random_model(heads) for kind, heads in KV_HEADS.items()}
    room = context + 2 * (repeats + WARMUP)
    caches = {kind: filled(model, "contiguous", context, batch, room) for kind, model in models.items()}
    samples = interleave(
        {kind: step_of(model, caches[kind]) for kind, model in models.items()}, repeats=repeats, warmup=WARMUP
    )
    runs = []
    for kind, model in models.items():
        costs = step_costs(model.config, batch, context, dtype=model.dtype)
        runs.append(
            HeadRun(
                kind=kind,
                kv_heads=KV_HEADS[kind],
                nbytes=caches[kind].nbytes,
                costs=costs,
                predicted_s=costs.bytes / roof_of(model, roofs).bandwidth,
                seconds=samples[kind].median(float),
                spread_s=samples[kind].spread(float),
            )
        )
    return HeadsExperiment(context, batch, tuple(runs))


def flat_rows(window: int, contexts: list[int], repeats: int = 7) -> list[dict[str, Any]]:
    """Time of a decode step with the contiguous cache and with a sliding window, at several contexts."""
    model = random_model(KV_HEADS["MHA"])
    spec = f"sliding_window:window={window}"
    result = bench_cache(model, [spec], contexts=contexts, batches=[1], repeats=repeats)
    return [
        {
            "context": row.context,
            "contiguous (ms)": row.base_seconds * 1e3,
            f"window of {window} (ms)": row.seconds * 1e3,
            "contiguous / window": 1 / row.ratio,
        }
        for row in result.rows
        if row.cache == spec
    ]
