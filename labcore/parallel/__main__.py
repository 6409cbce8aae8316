"""Greedy generation from one model split over the processes that torchrun started; rank 0 prints."""

from __future__ import annotations

import argparse
import os
import sys

import torch
import torch.distributed as dist

from labcore.errors import LabError, ParallelError
from labcore.generation import generate
from labcore.model import load
from labcore.parallel.shard import shard


def main() -> None:
    """Load, split, generate. Every rank draws the same tokens, because every rank has the same logits."""
    parser = argparse.ArgumentParser(
        prog="torchrun --nproc-per-node N -m labcore.parallel", description=__doc__
    )
    parser.add_argument("--model", default="story", help="story, a folder, a Hub id, or shape:NAME")
    parser.add_argument("--prompt", default="Tom has a red")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--dtype", default="auto")
    wanted = parser.parse_args()
    if "WORLD_SIZE" not in os.environ:
        raise ParallelError("Start this with torchrun: torchrun --nproc-per-node 2 -m labcore.parallel.")
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available()
    if cuda and rank >= torch.cuda.device_count():
        raise ParallelError(
            f"Rank {rank} has no GPU: {torch.cuda.device_count()} are here; start fewer ranks a machine."
        )
    dist.init_process_group("nccl" if cuda else "gloo")
    model = shard(load(wanted.model, device=f"cuda:{rank}" if cuda else "cpu", dtype=wanted.dtype))
    out = generate(model, wanted.prompt, max_new_tokens=wanted.max_new_tokens)
    if dist.get_rank() == 0:
        print(out.text)
    dist.destroy_process_group()


if __name__ == "__main__":
    try:
        main()
    except LabError as error:
        sys.exit(str(error))
