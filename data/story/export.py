"""From a training checkpoint to a model folder that labcore and transformers both load."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from data.story.tokens import BOS, EOS, load_tokenizer
from data.story.train import load_model
from labcore.model import save_checkpoint


def export(checkpoint: Path, tokenizer_path: Path, folder: Path) -> Path:
    """Write config.json, model.safetensors (fp16), tokenizer.json and tokenizer_config.json to `folder`."""
    model = load_model(checkpoint, torch.device("cpu"), torch.float32)
    tokenizer = load_tokenizer(tokenizer_path)
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    save_checkpoint(model, model.config.with_(bos_token_id=bos, eos_token_ids=(eos,)), folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "add_bos_token": True,
        "model_max_length": model.config.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return folder
