"""A model as a GGUF file, so that llama.cpp runs the very same weights: in full precision, Q8_0 or Q4_0."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labcore.atomic import replacing
from labcore.errors import CheckpointError
from labcore.model import weights
from labcore.model.gguf_file import FAMILIES, gguf_name, library

if TYPE_CHECKING:
    from labcore.model.loading import Model

KINDS = ("f32", "f16", "q8_0", "q4_0")


def write_gguf(model: Model, path: Path | str, kind: str = "q8_0") -> Path:
    """Write a model that is not quantized. All matrices, embedding and head included, are of this kind.

    Returns the path. Raises CheckpointError for an unknown kind, widths that 32 does not divide, a model of
    another family, or one that is quantized already.
    """
    config = model.config
    if kind not in KINDS:
        raise CheckpointError(f"There is no kind {kind!r} of GGUF here; choose from {', '.join(KINDS)}.")
    if model.recipe:
        raise CheckpointError(
            f"{model.name!r} is quantized already ({model.recipe}); load it anew for a GGUF file."
        )
    family = "llama" if config.model_type == "mistral" else config.model_type
    if family not in FAMILIES:
        raise CheckpointError(
            f"GGUF files of {config.model_type!r} models are not written; {', '.join(FAMILIES)} are."
        )
    if config.o_proj_bias or config.mlp_bias:
        raise CheckpointError(
            f"{model.name!r} has biases on its output or feed-forward layers; GGUF's {family} has no "
            "place for them."
        )
    widths = (config.hidden_size, config.intermediate_size, config.num_attention_heads * config.head_dim)
    if kind.startswith("q") and any(width % 32 for width in widths):
        raise CheckpointError(
            f"{kind} takes blocks of 32, which do not divide widths of {widths}; write f32 or f16."
        )
    gguf = library()
    target = Path(path)
    with replacing(target) as part:
        writer = gguf.GGUFWriter(part, family)
        _metadata(writer, model, family)
        for name, tensor in weights.to_hugging_face(model.transformer, config).items():
            module, _, leaf = name.rpartition(".")
            data = tensor.detach().float().cpu()
            if family == "llama" and module.endswith(("q_proj", "k_proj")):
                data = data.unflatten(0, (-1, 2, config.head_dim // 2)).transpose(1, 2).flatten(0, 2)
            _add(gguf, writer, f"{gguf_name(module)}.{leaf}", data.contiguous().numpy(), kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return target


def _metadata(writer: Any, model: Model, family: str) -> None:
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    _tokens(writer, model)


def _tokens(writer: Any, model: Model) -> None:
    """llama.cpp asks for a vocabulary. Ours is of placeholders: such a file is for token ids."""
    gguf = library()
    size = model.config.vocab_size
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{token}>".encode() for token in range(size)])
    writer.add_token_scores([0.0] * size)
    writer.add_token_types([gguf.TokenType.NORMAL] * size)
    writer.add_bos_token_id(model.config.bos_token_id or 0)
    writer.add_eos_token_id(next(iter(model.config.eos_token_ids), 0))
    writer.add_add_bos_token(False)


def _add(gguf: Any, writer: Any, name: str, data: np.ndarray[Any, Any], kind: str) -> None:
    if data.ndim == 1:
        writer.add_tensor(name, data)
        return
    stored = getattr(gguf.GGMLQuantizationType, kind.upper())
    if kind == "f32":
        writer.add_tensor(name, data)
    elif kind == "f16":
        writer.add_tensor(name, data.astype(np.float16))
    else:
        writer.add_tensor(name, gguf.quants.quantize(data, stored), raw_dtype=stored)
