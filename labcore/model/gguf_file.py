"""llama.cpp's GGUF files (types of numbers as the `gguf` library knows them): Llama, Qwen2 and Qwen3 models.

Weights in F32, F16, BF16, Q4_0, Q8_0, Q4_K and Q6_K. A file says what it is: the configuration comes from its
metadata. Its tokenizer is not read: a tokenizer.json beside the file is.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from labcore.config import ModelConfig
from labcore.errors import CheckpointError, ConfigError
from labcore.model import weights
from labcore.model.assembling import Part, assemble
from labcore.model.checkpoint import ensure_complete, shown_name
from labcore.model.gguf_header import KindOf, read_header
from labcore.quant.gguf_blocks import BLOCKS, from_blocks

if TYPE_CHECKING:
    from labcore.model.transformer import Transformer

FAMILIES = ("llama", "qwen2", "qwen3")
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

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


def _kinds(gguf: Any) -> KindOf:
    """What the library knows of a numeric type."""

    def of(raw: int) -> tuple[str, int, int]:
        try:
            kind = gguf.GGMLQuantizationType(raw)
            return kind.name, *gguf.GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError):
            raise ValueError(f"it has tensors of type {raw}, which the gguf package does not know") from None

    return of


class GgufFile:
    """An open file: its configuration, and its tensors by name, none of them read yet."""

    def __init__(self, path: Path) -> None:
        kind_of = _kinds(library())
        self.name, self.nbytes = path.name, path.stat().st_size
        try:
            self._data = np.memmap(path, np.uint8, mode="r")
            header = read_header(self._data.data, kind_of)
        except (ValueError, OSError) as error:
            raise CheckpointError(
                f"{path.name} ({self.nbytes:,} bytes) is no GGUF file, or cut short ({error}); fetch it "
                "again."
            ) from None
        self._values, self.tensors = header.values, header.tensors
        self._refuse_unreadable()
        self.config = _config(self)

    @property
    def recipe(self) -> str:
        """The kinds of weights in it, such as "gguf Q4_K, Q6_K"."""
        kinds = {tensor.kind for tensor in self.tensors.values()} - set(PLAIN)
        return f"gguf {', '.join(sorted(kinds))}" if kinds else ""

    def value(self, key: str, default: Any = None) -> Any:
        """One entry of the metadata; {arch} in the key stands for the architecture."""
        if "{arch}" in key:
            key = key.replace("{arch}", str(self.value("general.architecture")))
        return self._values.get(key, default)

    def _refuse_unreadable(self) -> None:
        for name, tensor in self.tensors.items():
            if (kind := tensor.kind) not in (*PLAIN, *BLOCKS):
                raise CheckpointError(
                    f"{shown_name(name)} in {self.name} is stored as {kind}; "
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
        kind, shape, start, nbytes = self.tensors[name]
        data = torch.from_numpy(self._data[start : start + nbytes].copy())
        return (data.view(PLAIN[kind]).view(shape) if kind in PLAIN else data.view(*shape[:-1], -1)), kind

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
            f"{file.name} holds a model of architecture {reprlib.repr(family)}; "
            f"labcore reads {', '.join(FAMILIES)}."
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
    scaling = _scaling(file)
    if scaling not in ("none", "") or "rope_freqs.weight" in file.tensors:
        raise CheckpointError(
            f"{file.name} stretches its rotary positions ({reprlib.repr(scaling)}); load it as safetensors."
        )
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{file.name} holds no matrix token_embd.weight; fetch it again.")
    try:
        config = ModelConfig.from_dict(data | _defaulted(file, family, embedding.shape[0]))
        config = config.with_(o_proj_bias="blk.0.attn_output.bias" in file.tensors)
    except ConfigError as error:
        raise ConfigError(f"The metadata of {file.name} cannot be run: {error}") from None
    if (values := file.value("{arch}.attention.value_length", config.head_dim)) != config.head_dim:
        raise CheckpointError(
            f"{file.name} has values of {reprlib.repr(values)} numbers a head and keys of {config.head_dim}; "
            "labcore runs models whose two are as long."
        )
    if (rotated := file.value("{arch}.rope.dimension_count", config.head_dim)) != config.head_dim:
        raise CheckpointError(
            f"{file.name} rotates {reprlib.repr(rotated)} of each head's {config.head_dim} numbers; "
            "labcore rotates whole heads."
        )
    return config


def _scaling(file: GgufFile) -> Any:
    """The kind of stretched positions. A factor without a kind is linear, as llama.cpp reads it."""
    factors = (file.value("{arch}.rope.scaling.factor"), file.value("{arch}.rope.scale_linear"))
    stretched = any(factor not in (None, 0, 1) for factor in factors)
    return file.value("{arch}.rope.scaling.type", "linear" if stretched else "none")


def _ends(file: GgufFile) -> list[Any]:
    """Tokens that end an answer: the end of a text, and of a turn or message, which chat models end with."""
    names = ("eos", "eot", "eom")
    found = [file.value(f"tokenizer.ggml.{name}_token_id") for name in names]
    return list(dict.fromkeys(token for token in found if token is not None))


def _defaulted(file: GgufFile, family: str, vocab: int) -> dict[str, Any]:
    """The fields of a config.json that the metadata may leave out, in Hugging Face's names."""
    heads = file.value("{arch}.attention.head_count")
    return {
        "model_type": family,
        "num_key_value_heads": file.value("{arch}.attention.head_count_kv", heads),
        "head_dim": file.value("{arch}.attention.key_length"),
        "vocab_size": vocab,
        "rope_theta": file.value("{arch}.rope.freq_base", 10_000.0),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
        "bos_token_id": file.value("tokenizer.ggml.bos_token_id"),
        "eos_token_id": _ends(file),
    }
