"""`labcore.load`: a name, a folder, a Hub id or a catalogued shape becomes a whole model.

    "story", "story-draft"      the embedded models, no network
    "path/to/folder"            config.json, safetensors, perhaps tokenizer.json
    "path/to/model.gguf"        a llama.cpp file, full precision or Q4_0, Q8_0, Q4_K, Q6_K
    "owner/name"                the Hugging Face Hub; the only source that touches the network
    "shape:llama-3.1-8b"        a real architecture with random weights, for speed and memory

The model is built empty in its final place and dtype; each tensor of the checkpoint is mapped from its file
and copied into its rows. So loading takes the model's own memory and at most one tensor more.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from labcore import catalog
from labcore.config import ModelConfig, token_ids
from labcore.errors import CheckpointError, ConfigError
from labcore.json_file import read_object
from labcore.model import gguf_file, hub, quant_checkpoint, quantized_folder, weights
from labcore.model.checkpoint import Checkpoint, ensure_backed
from labcore.model.device import allocate, ensure_bytes_fit, ensure_fits, resolve_device, resolve_dtype
from labcore.model.finite import ensure_finite
from labcore.model.transformer import Transformer
from labcore.perf.costs import num_parameters
from labcore.quant.linear import QuantLinear
from labcore.tokenizer import Tokenizer

EMBEDDED = ("story", "story-draft")
SHAPE = "shape:"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass
class Model:
    """A Transformer with its configuration and its tokenizer (None: it takes and gives token ids)."""

    name: str
    config: ModelConfig
    transformer: Transformer
    tokenizer: Tokenizer | None
    random_weights: bool = False
    recipe: str = ""  # what its weights were quantized with

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.transformer.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What activations, and weights that are not quantized, are held in."""
        return self.transformer.norm.weight.dtype

    @property
    def num_parameters(self) -> int:
        """How many numbers were learnt; a tied head is counted once."""
        codes = [layer for layer in self.transformer.modules() if isinstance(layer, QuantLinear)]
        quantized = sum(layer.in_features * layer.out_features for layer in codes)
        return quantized + sum(parameter.numel() for parameter in self.transformer.parameters())

    @property
    def weight_bytes(self) -> int:
        """Bytes that the stored tensors really take; a tied head is counted once."""
        codes = [layer for layer in self.transformer.modules() if isinstance(layer, QuantLinear)]
        quantized = sum(layer.nbytes for layer in codes)
        return quantized + sum(parameter.nbytes for parameter in self.transformer.parameters())


def load(
    source: str | Path = "story",
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    seed: int = 0,
    revision: str | None = None,
    progress: bool = True,
) -> Model:
    """Load a model whole, ready to generate.

    source: an embedded name, a folder, a Hub id, or "shape:NAME" (see this module).
    device, dtype: "auto" takes the GPU where there is one, and the dtype natural to the device.
    seed: of a shape's random weights. revision (branch, tag, commit) and progress (bar): for the Hub only.
    Raises DeviceError, OutOfMemory (before anything is allocated), ConfigError, CheckpointError, HubError,
    CatalogError.
    """
    place = resolve_device(device)
    kind = resolve_dtype(dtype, place)
    name = str(source)
    if name.startswith(SHAPE):
        return _random_model(name, place, kind, seed)
    if name in EMBEDDED:
        return _load_folder(catalog.embedded(name), name, place, kind)
    folder = Path(source).expanduser()
    if folder.suffix == ".gguf" and folder.is_file():
        return _load_gguf(folder, place, kind)
    if name and folder.is_dir():
        return _load_folder(folder, folder.resolve().name, place, kind)
    if isinstance(source, Path) or folder.is_file() or not _HUB_ID.fullmatch(name):
        raise CheckpointError(_unknown(name, folder))

    def accept(path: Path) -> None:
        _ensure_fits_as_stored(ModelConfig.from_file(path), quantization_of(path.parent), name, place, kind)

    return _load_folder(hub.fetch(name, revision, progress, accept), name, place, kind)


def _unknown(name: str, folder: Path) -> str:
    if folder.is_file():
        return f"{name!r} is a file; give the folder that holds it (with config.json and {folder.name})."
    shapes = [SHAPE + shape for shape in catalog.architectures(runnable_only=True)]
    near = difflib.get_close_matches(name, [*EMBEDDED, *shapes], n=3, cutoff=0.5)
    guess = f" (did you mean {' or '.join(near)}?)" if near else ""
    return (
        f"There is no model or folder {name!r}{guess}; give {', '.join(EMBEDDED)}, an existing folder, "
        f"a Hugging Face id 'owner/name', or '{SHAPE}NAME' with a catalogued architecture."
    )


def _load_gguf(path: Path, device: torch.device, dtype: torch.dtype) -> Model:
    with gguf_file.opened(path) as file:
        ensure_backed(file.config, file.tensors, file.nbytes, path.name)
        ensure_bytes_fit(file.nbytes, device, path.name)
        transformer = _skeleton(file.config)
        file.fill(transformer, device, dtype)
        ensure_finite(transformer, path.name, dtype)
        tokenizer = Tokenizer.from_folder(path.parent, file.config)
        transformer.prepare()
        return Model(path.stem, file.config, transformer, tokenizer, recipe=file.recipe)


def _load_folder(folder: Path, name: str, device: torch.device, dtype: torch.dtype) -> Model:
    config = _with_generation_defaults(ModelConfig.from_file(folder / "config.json"), folder)
    stored = quantization_of(folder)
    with Checkpoint(folder) as checkpoint:
        ensure_backed(config, checkpoint.tensors, checkpoint.nbytes, folder.name)
        config = _settle_tie(config, checkpoint)
        transformer = _skeleton(config)
        if (stored := stored or quantized_folder.older_description(checkpoint)) is not None:
            return _load_quantized(transformer, config, name, checkpoint, stored, device, dtype)
        checkpoint.check(weights.shapes(config, transformer), ignorable=[weights.HEAD])
        tokenizer = Tokenizer.from_folder(folder, config)
        _ensure_model_fits(config, name, device, dtype)
        _materialise(transformer, device, dtype)
        parameters = weights.parameters_of(transformer)
        for hf, home in weights.places(config, parameters).items():
            home.of(parameters).copy_(checkpoint.read(hf))
    ensure_finite(transformer, name, dtype)
    transformer.prepare()
    return Model(name, config, transformer, tokenizer)


def _load_quantized(
    transformer: Transformer,
    config: ModelConfig,
    name: str,
    checkpoint: Checkpoint,
    stored: dict[str, Any],
    device: torch.device,
    dtype: torch.dtype,
) -> Model:
    """A checkpoint whose linear layers are codes: labcore's own, GPTQ's or AWQ's."""
    ensure_bytes_fit(checkpoint.nbytes, device, name)
    method = _method_of(stored, checkpoint.folder)
    fill = quant_checkpoint.fill if method == quant_checkpoint.METHOD else quantized_folder.fill
    fill(transformer, config, checkpoint, stored, device, dtype)
    ensure_finite(transformer, name, dtype)
    tokenizer = Tokenizer.from_folder(checkpoint.folder, config)
    transformer.prepare()
    return Model(name, config, transformer, tokenizer, recipe=str(stored.get("recipe") or method))


def quantization_of(folder: Path) -> dict[str, Any] | None:
    """config.json's quantization_config, None where there is none. Raises CheckpointError for one that is no
    description, or of a method that labcore does not read."""
    stored = read_object(folder / "config.json").get("quantization_config")
    if stored is None or stored == {}:
        return None
    if not isinstance(stored, dict):
        raise CheckpointError(
            f"config.json in {folder.name} has {reprlib.repr(stored)} as its quantization_config, which is "
            "no table of settings; fetch the config.json that belongs to these weights."
        )
    _method_of(stored, folder)
    return stored


def _method_of(stored: dict[str, Any], folder: Path) -> str:
    method = stored.get("quant_method")
    if method not in (quant_checkpoint.METHOD, *quantized_folder.METHODS):
        raise CheckpointError(
            f"{folder.name} is stored quantized by {reprlib.repr(method)}; labcore reads labcore, gptq and "
            "awq, and GGUF files, so load one of those, or the full-precision checkpoint."
        )
    return str(method)


def _with_generation_defaults(config: ModelConfig, folder: Path) -> ModelConfig:
    """generation_config.json, where it names end-of-text tokens, has the last word (as in transformers)."""
    try:
        found = read_object(folder / "generation_config.json").get("eos_token_id")
    except FileNotFoundError:
        return config
    ids = token_ids("eos_token_id of generation_config.json", found)
    return config.with_(eos_token_ids=ids) if ids else config


def _settle_tie(config: ModelConfig, checkpoint: Checkpoint) -> ModelConfig:
    """Two different matrices are not tied, whatever config.json says (transformers judges likewise); a head
    of codes is another matrix than an embedding, which is never stored so."""
    if not config.tie_word_embeddings:
        return config
    coded = any(name in checkpoint.tensors for name in quantized_folder.codes_of("lm_head"))
    both = weights.HEAD in checkpoint.tensors and weights.EMBEDDING in checkpoint.tensors
    if coded or (both and not checkpoint.same(weights.HEAD, weights.EMBEDDING)):
        return config.with_(tie_word_embeddings=False)
    return config


class _Undrawn(TorchFunctionMode):
    """`torch.nn.init` leaves tensors alone: weights are to come, and on the meta device it costs a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def _skeleton(config: ModelConfig) -> Transformer:
    """The model without memory: shapes only, on the meta device."""
    with torch.device("meta"), _Undrawn():
        return Transformer(config).eval()


def _ensure_model_fits(config: ModelConfig, name: str, device: torch.device, dtype: torch.dtype) -> None:
    """By arithmetic: a crafted configuration would take the memory of its own skeleton."""
    ensure_fits(num_parameters(config), dtype, device, name)


def _ensure_fits_as_stored(
    config: ModelConfig, stored: dict[str, Any] | None, name: str, device: torch.device, dtype: torch.dtype
) -> None:
    """Before a checkpoint is fetched: codes take their bits at least; all that they take is known later."""
    bits = stored.get("bits", stored.get("w_bit", 1)) if stored else None
    if bits is None:
        _ensure_model_fits(config, name, device, dtype)
    else:
        least = bits if isinstance(bits, int) and 1 <= bits <= 8 else 1
        ensure_bytes_fit(num_parameters(config) * least // 8, device, name)


def _materialise(transformer: Transformer, device: torch.device, dtype: torch.dtype) -> None:
    """Give a skeleton memory, unset, without the initialisation that would be overwritten at once."""
    for name, shape in [(name, tensor.shape) for name, tensor in weights.parameters_of(transformer).items()]:
        module, _, leaf = name.rpartition(".")
        memory = nn.Parameter(allocate(shape, device, dtype), requires_grad=False)
        setattr(transformer.get_submodule(module), leaf, memory)
    transformer.tie()
    transformer.reset_rope()


def _random_model(name: str, device: torch.device, dtype: torch.dtype, seed: int) -> Model:
    entry = catalog.entry(name.removeprefix(SHAPE))
    if not entry.runnable:
        raise ConfigError(
            f"{entry.title} cannot be run ({entry.reason}); labcore runs dense models of the Llama "
            f"family (see labcore.catalog.architectures(runnable_only=True))."
        )
    config, name = entry.config, SHAPE + entry.name
    _ensure_model_fits(config, name, device, dtype)
    transformer = _skeleton(config)
    _materialise(transformer, device, dtype)
    generator = torch.Generator(device).manual_seed(seed)
    for parameter_name, parameter in weights.parameters_of(transformer).items():
        _draw(parameter_name, parameter, config, generator)
    transformer.prepare()
    return Model(name, config, transformer, tokenizer=None, random_weights=True)


def _draw(name: str, parameter: Tensor, config: ModelConfig, generator: torch.Generator) -> None:
    """GPT-2's initialisation: 0.02, divided by sqrt(2 L) where a layer adds to the residual stream."""
    if parameter.dim() == 1:
        parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        return
    adds = name.endswith(("o_proj.weight", "down_proj.weight"))
    depth = (2 * config.num_hidden_layers) ** 0.5 if adds else 1.0
    parameter.normal_(0.0, 0.02 / depth, generator=generator)
