"""Rebuild the embedded models from nothing: `python -m data.story.make` (under an hour on two cores).

Order: tokenizer, training rows, main model, draft (taught by the main model), export, held-out set,
evaluation, model card. Work files go to runs/story (--work); an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch

from data.story import evaluate, heldout
from data.story.dataset import write_bucket
from data.story.export import export
from data.story.plans import ROW_TOKENS, draft_plan, main_plan
from data.story.tokens import load_tokenizer, train_tokenizer
from data.story.train import train, worker_count

HOME = Path(__file__).parent


def make(work: Path) -> None:
    """All steps, each skipping what it finds done."""
    work.mkdir(parents=True, exist_ok=True)
    tokenizer_path = work / "tokenizer.json"
    if not tokenizer_path.exists():
        train_tokenizer().save(str(tokenizer_path))
    for bucket, tokens in ROW_TOKENS.items():
        write_bucket(tokenizer_path, work, bucket, tokens, worker_count())
    main = train(main_plan(), work, "main")
    export(main, tokenizer_path, HOME / "model")
    draft = train(draft_plan(main), work, "draft")
    export(draft, tokenizer_path, HOME / "draft")
    record_training(work)
    heldout.write(load_tokenizer(tokenizer_path))
    evaluate.main()


def record_training(work: Path) -> None:
    """Write training.json from the last lines of the two logs."""
    runs = {}
    for name, log in (("story", "main"), ("story-draft", "draft")):
        last = json.loads((work / f"{log}.log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
        runs[name] = {"steps": last["step"], "tokens": last["tokens"], "seconds": last["seconds"]}
    amx = not torch.cuda.is_available() and torch.cpu._is_amx_tile_supported()
    hardware = "one GPU" if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    record = {"hardware": hardware + (" with bf16 matrix units" if amx else ""), "runs": runs}
    (HOME / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--work", type=Path, default=Path("runs/story"), help="folder for rows and checkpoints"
    )
    make(parser.parse_args().work)
