"""llama.cpp's GGUF files, through the `gguf` library's reader: Llama, Qwen2 and Qwen3 models.

Weights in F32, F16, BF16, Q4_0, Q8_0, Q4_K and Q6_K. A file says what it is: the configuration comes from its
metadata. Its tokenizer is not read: a tokenizer.json beside the file is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from labcore.config import ModelConfig
from labcore.errors import CheckpointError
from labcore.model import weights
from labcore.model.assembling import Part, assemble
from labcore.model.checkpoint import ensure_complete
from labcore.quant.gguf_blocks import BLOCKS, from_blocks

if TYPE_CHECKING:
    from labcore.model.transformer import Transformer

FAMILIES = ("llama", "qwen2", "qwen3")
PLAIN = ("F32", "F16", "BF16")

# Hugging Face's modules by GGUF's names; those of a layer stand behind "blk.N.".
MODEL_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(module: str) -> str:
    """ "model.layers.3.mlp.up_proj" -> "blk.3.ffn_up"."""
    if module in MODEL_NAMES:
        return MODEL_NAMES[module]
    _, _, layer, rest = module.split(".", 3)
    return f"blk.{layer}.{LAYER_NAMES[rest]}"


def library() -> Any:
    """The gguf package. Raises CheckpointError where it is not installed."""
    try:
        import gguf
    except ModuleNotFoundError:
        raise CheckpointError(
            "Reading and writing GGUF files needs the gguf package; install it with: pip install gguf"
        ) from None
    return gguf


class GgufFile:
    """An open file: its configuration, and its tensors by name, none of them read yet."""

    def __init__(self, path: Path) -> None:
        gguf = library()
        self.name = path.name
        try:
            self._reader = gguf.GGUFReader(path)
        except (ValueError, IndexError, OSError, KeyError) as error:
            raise CheckpointError(
                f"{path.name} ({path.stat().st_size:,} bytes) is no GGUF file, or cut short ({error}); fetch "
                "it again."
            ) from None
        self.tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self._refuse_unreadable()
        self.config = _config(self)

    @property
    def recipe(self) -> str:
        """The kinds of weights in it, such as "gguf Q4_K, Q6_K"."""
        kinds = {tensor.tensor_type.name for tensor in self.tensors.values()} - set(PLAIN)
        return f"gguf {', '.join(sorted(kinds))}" if kinds else ""

    def value(self, key: str, default: Any = None) -> Any:
        """One entry of the metadata; {arch} in the key stands for the architecture."""
        if "{arch}" in key:
            key = key.replace("{arch}", str(self.value("general.architecture")))
        entry = self._reader.get_field(key)
        return default if entry is None else entry.contents()

    def _refuse_unreadable(self) -> None:
        for name, tensor in self.tensors.items():
            if (kind := tensor.tensor_type.name) not in (*PLAIN, *BLOCKS):
                raise CheckpointError(
                    f"{name} in {self.name} is stored as {kind}; "
                    f"labcore reads {', '.join((*PLAIN, *BLOCKS))}."
                )

    def fill(self, transformer: Transformer, device: torch.device, dtype: torch.dtype) -> None:
        """Give a skeleton this file's weights.

        Raises CheckpointError where one is missing, misshapen or without a place.
        """
        names = (name.rpartition(".") for name in weights.shapes(self.config, transformer))
        expected = [f"{gguf_name(module)}.{leaf}" for module, _, leaf in names]
        ensure_complete(self.name, "metadata", expected, self.tensors)
        assemble(transformer, self.config, self._part, device, dtype)

    def _part(self, module: str) -> Part:
        name = gguf_name(module)
        weight, bias = self._raw(f"{name}.weight"), None
        if f"{name}.bias" in self.tensors:
            bias = self._raw(f"{name}.bias")[0]
        rows = self._rows(module, weight[0].shape[0])
        picked = weight[0] if rows is None else weight[0][rows]
        bias = bias if bias is None or rows is None else bias[rows]
        kind = weight[1]
        return Part(from_blocks(kind, picked) if kind in BLOCKS else picked, bias)

    def _raw(self, name: str) -> tuple[Tensor, str]:
        """(numbers, or rows of raw blocks; kind)."""
        tensor = self.tensors[name]
        kind = tensor.tensor_type.name
        data = torch.from_numpy(tensor.data.copy())
        return (data.view(torch.bfloat16) if kind == "BF16" else data), kind

    def _rows(self, module: str, rows: int) -> Tensor | None:
        """llama.cpp rotates neighbouring pairs in llama models, so its files have the rows of queries and
        keys in that order; ours have the first halves of all pairs first."""
        if self.value("general.architecture") != "llama" or not module.endswith(("q_proj", "k_proj")):
            return None
        return torch.arange(rows).view(-1, self.config.head_dim // 2, 2).transpose(1, 2).reshape(-1)


@contextmanager
def opened(path: Path) -> Iterator[GgufFile]:
    """A GGUF file. Raises CheckpointError for what cannot be read, ConfigError for what cannot be run."""
    yield GgufFile(path)


def _config(file: GgufFile) -> ModelConfig:
    family = file.value("general.architecture")
    if family not in FAMILIES:
        raise CheckpointError(
            f"{file.name} holds a model of architecture {family!r}; labcore reads {', '.join(FAMILIES)}."
        )
    if file.value("{arch}.expert_count", 0):
        raise CheckpointError(f"{file.name} holds a mixture of experts; labcore runs dense models.")
    keys = {
        "hidden_size": "embedding_length", "num_hidden_layers": "block_count",
        "intermediate_size": "feed_forward_length", "num_attention_heads": "attention.head_count",
        "rms_norm_eps": "attention.layer_norm_rms_epsilon", "max_position_embeddings": "context_length",
    }  # fmt: skip
    data = {name: file.value(f"{{arch}}.{key}") for name, key in keys.items()}
    if missing := [keys[name] for name, value in data.items() if value is None]:
        raise CheckpointError(f"{file.name} lacks {family}.{missing[0]} in its metadata; fetch it again.")
    heads = data["num_attention_heads"]
    scaling = file.value("{arch}.rope.scaling.type", "none")
    if scaling not in ("none", "") or "rope_freqs.weight" in file.tensors:
        raise CheckpointError(
            f"{file.name} stretches its rotary positions ({scaling}); load it as safetensors."
        )
    config = ModelConfig.from_dict(
        data
        | {
            "model_type": family,
            "num_key_value_heads": file.value("{arch}.attention.head_count_kv", heads),
            "head_dim": file.value("{arch}.attention.key_length", data["hidden_size"] // heads),
            "vocab_size": int(file.tensors["token_embd.weight"].shape[1]),
            "rope_theta": file.value("{arch}.rope.freq_base", 10_000.0),
            "tie_word_embeddings": "output.weight" not in file.tensors,
            "attention_bias": "blk.0.attn_q.bias" in file.tensors,
            "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
            "bos_token_id": file.value("tokenizer.ggml.bos_token_id"),
            "eos_token_id": file.value("tokenizer.ggml.eos_token_id"),
        }
    )
    return config.with_(o_proj_bias="blk.0.attn_output.bias" in file.tensors)
