"""Train the story model: a curriculum from one fact in 64 tokens to long stories, then a decay to zero.

On a CPU one single-threaded worker per core computes its share of every batch (no operation waits for another
core); on a GPU there is one worker. Interrupted runs go on from their last checkpoint.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.story.causal import CausalAttention
from data.story.optimise import PEAK_LR, Optimiser, mean_of
from labcore.config import ModelConfig
from labcore.model.transformer import Transformer


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum: `steps` batches of `batch` tokens, each of one bucket drawn by its share."""

    steps: int
    shares: dict[int, float]
    batch: int = 8192


@dataclass(frozen=True)
class Plan:
    """All that decides a training run."""

    config: ModelConfig
    stages: tuple[Stage, ...]
    decay: int  # steps at the end in which the learning rate falls to zero
    seed: int = 0
    peak_lr: float = PEAK_LR
    warmup: int = 50
    teacher: Path | None = None  # a checkpoint to learn from, beside the text

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> Stage:
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        return self.stages[-1]

    def lr(self, step: int) -> float:
        """Warm-up, plateau, linear decay (WSD)."""
        left = (self.steps - step) / self.decay
        return self.peak_lr * min(1.0, (step + 1) / self.warmup, left)


class Batches:
    """Rows of every bucket, handed out so that no row is used twice before all were."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.files: dict[int, np.ndarray] = {}

    def bucket_of(self, stage: Stage, step: int) -> int:
        rng = Random(f"{self.seed} bucket {step}")
        return rng.choices(list(stage.shares), list(stage.shares.values()))[0]

    def rows(self, bucket: int, step: int, rank: int, count: int, workers: int) -> tuple[Tensor, Tensor]:
        """(tokens, weights), each (count, bucket), of `rank`'s share at `step`."""
        if bucket not in self.files:
            self.files[bucket] = np.load(self.folder / f"rows-{bucket}.npy", mmap_mode="r")
        rows = self.files[bucket]
        blocks = rows.shape[2] // count
        number = step * workers + rank
        chunk, block = (number // blocks) % rows.shape[0], number % blocks
        taken = torch.from_numpy(rows[chunk, :, block * count : (block + 1) * count].astype(np.int64))
        return taken[0], taken[1]


LossFn = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def make_loss(model: Transformer, length: int, compiled: bool, teacher: Transformer | None = None) -> LossFn:
    """(tokens, weights) -> (weighted mean loss, (rows, length - 1) right predictions) for one bucket."""
    device, dtype = model.norm.weight.device, model.norm.weight.dtype
    attention = CausalAttention(length, model.config.queries_per_kv_head, device, dtype)

    def loss(tokens: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(tokens, attention)[:, :-1].float()
        targets, weights = tokens[:, 1:], weights[:, 1:].float()
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(weights)
        if teacher is not None:
            with torch.no_grad():
                group = teacher.config.queries_per_kv_head
                taught = teacher(tokens, CausalAttention(length, group, device, dtype))[:, :-1].float()
            gap = F.kl_div(logits.log_softmax(-1), taught.log_softmax(-1), log_target=True, reduction="none")
            losses = 0.2 * losses + gap.sum(-1)
        return (losses * weights).sum() / weights.sum(), logits.argmax(-1) == targets

    return torch.compile(loss, dynamic=False) if compiled else loss


class Worker:
    """One of the processes that train together."""

    def __init__(
        self, plan: Plan, work: Path, name: str, rank: int, workers: int, device: torch.device
    ) -> None:
        self.plan, self.checkpoint, self.device = plan, work / f"{name}.pt", device
        self.rank, self.workers = rank, workers
        dtype = (
            torch.bfloat16 if device.type == "cuda" or torch.cpu._is_amx_tile_supported() else torch.float32
        )
        self.model = Transformer(plan.config).to(device, dtype)
        self.model.reset_rope()
        self.optimiser = Optimiser(self.model, plan.seed)
        self.teacher = load_model(plan.teacher, device, dtype) if plan.teacher else None
        self.batches = Batches(work, plan.seed)
        self.losses: dict[int, LossFn] = {}
        self.step = self.tokens = 0
        self.seconds = 0.0

    def train(self, log: Callable[[dict], None]) -> None:
        """From the present step to the last."""
        started, since, seen = time.perf_counter(), {}, 0
        while self.step < self.plan.steps:
            bucket, loss, right = self._one_step()
            since.setdefault(bucket, []).append((loss, right))
            self.step += 1
            if self.step % 25 == 0 and self.rank == 0:
                now = time.perf_counter()
                self.seconds += now - started
                log(self._report(since, (self.tokens - seen) / (now - started)))
                started, since, seen = now, {}, self.tokens
            if self.step % 200 == 0 or self.step == self.plan.steps:
                self.save()

    def _report(self, since: dict[int, list[tuple[float, float]]], speed: float) -> dict:
        means = {
            b: [round(sum(x) / len(x), 3) for x in zip(*pairs, strict=True)] for b, pairs in since.items()
        }
        return {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": round(self.seconds),
            "tokens_per_s": round(speed),
            "loss_and_recall": dict(sorted(means.items())),
        }

    def _one_step(self) -> tuple[int, float, float]:
        """(bucket, this worker's mean loss, share of right answers)."""
        stage = self.plan.stage_at(self.step)
        bucket = self.batches.bucket_of(stage, self.step)
        if bucket not in self.losses:
            self.losses[bucket] = make_loss(self.model, bucket, self.device.type == "cpu", self.teacher)
        rows = stage.batch // bucket // self.workers
        tokens, weights = self.batches.rows(bucket, self.step, self.rank, rows, self.workers)
        tokens, weights = tokens.to(self.device), weights.to(self.device)
        loss, right = self.losses[bucket](tokens, weights)
        loss.backward()
        mean_of(self.optimiser.gradients(), self.workers)
        self.optimiser.step(self.plan.lr(self.step))
        self.tokens += int((weights > 0).sum()) * self.workers
        answers = weights[:, 1:] > 1
        return bucket, loss.item(), right[answers].float().mean().item()

    def save(self) -> None:
        if self.rank:
            return
        state = {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "config": self.plan.config,
            "optimiser": self.optimiser.state_dict(),
        }
        partial = self.checkpoint.with_suffix(".part")
        torch.save(state, partial)
        partial.rename(self.checkpoint)

    def resume(self) -> None:
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, weights_only=False, map_location=self.device)
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]


def load_model(path: Path, device: torch.device, dtype: torch.dtype) -> Transformer:
    """The model of a training checkpoint."""
    state = torch.load(path, weights_only=False, map_location=device)
    model = Transformer(state["config"]).to(device, dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(state["optimiser"]["masters"][name])
    model.reset_rope()
    return model.requires_grad_(False)


def _run_worker(rank: int, plan: Plan, work: Path, name: str, workers: int, device: str) -> None:
    if workers > 1:
        torch.set_num_threads(1)
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "29511")
        torch.distributed.init_process_group("gloo", rank=rank, world_size=workers)
    worker = Worker(plan, work, name, rank, workers, torch.device(device))
    worker.resume()
    with (work / f"{name}.log.jsonl").open("a") as file:
        worker.train(lambda line: print(json.dumps(line), file=file, flush=True))
    if workers > 1:
        torch.distributed.destroy_process_group()


def worker_count() -> int:
    """One process per CPU core (at most eight, so that shares of a batch stay whole), or one for a GPU."""
    return 1 if torch.cuda.is_available() else min(8, os.cpu_count() or 1)


def train(plan: Plan, work: Path, name: str) -> Path:
    """Run `plan` in folder `work`, which holds the rows. Returns the path of its checkpoint, work/name.pt.

    Writes a line of progress to work/name.log.jsonl every 25 steps.
    """
    workers = worker_count()
    if workers == 1:
        _run_worker(0, plan, work, name, 1, "cuda" if torch.cuda.is_available() else "cpu")
        return work / f"{name}.pt"
    # Large blocks stay with the process instead of going back to the system after every operation.
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
    torch.multiprocessing.spawn(_run_worker, (plan, work, name, workers, "cpu"), nprocs=workers)
    return work / f"{name}.pt"
