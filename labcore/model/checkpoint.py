"""Reading and writing checkpoints: safetensors only, every tensor checked before the first byte is placed.

Pickle files (.bin, .pt, .pth) are refused: opening one runs whatever code it holds. safetensors is a table of
names, shapes and offsets followed by raw numbers, so that a tensor can be read alone and nothing can run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from labcore import atomic
from labcore.config import ModelConfig
from labcore.errors import CheckpointError
from labcore.json_file import read_object
from labcore.model import weights
from labcore.model.device import resolve_dtype
from labcore.perf.costs import num_parameters

if TYPE_CHECKING:
    from labcore.model.loading import Model
    from labcore.model.transformer import Transformer

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_READABLE = ("F64", "F32", "F16", "BF16")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
Shape = tuple[int, ...]
MOST_HEADER = 8 << 20  # bytes of one file's table of tensors; of a 405B model it has 0.2 MB
_SHARD = re.compile(r"[\w.-]{1,200}\.safetensors", re.ASCII)
_LAYER = re.compile(r"(?:^|\.)(?:layers|blk)\.(\d{1,9})\.")  # Hugging Face's names, ours, and GGUF's


class Stored(NamedTuple):
    """One tensor as a file's header states it."""

    file: Any  # an open safetensors file
    shape: Shape
    dtype: str


class Checkpoint:
    """An open checkpoint folder: its tensors by name, none of them read yet. Use it in a `with`.

    Raises CheckpointError when a file is missing, corrupt, truncated or pickled.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors: dict[str, Stored] = {}
        self.nbytes = 0  # of all its files
        self._open = ExitStack()
        try:
            for path in weight_files(folder):
                self._add(path)
        except BaseException:
            self._open.close()
            raise

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *error: object) -> None:
        self.tensors.clear()
        self._open.close()

    def _add(self, path: Path) -> None:
        ensure_short_header(path)
        self.nbytes += path.stat().st_size
        try:
            file = self._open.enter_context(safe_open(path, framework="pt", device="cpu"))
            for name in file.keys():  # noqa: SIM118  (a safetensors file is not a dict)
                if name in self.tensors:
                    raise CheckpointError(
                        f"{_some([name])} is in two files of {self.folder.name}, and which one counts is not "
                        "said; fetch the folder again."
                    )
                header = file.get_slice(name)
                self.tensors[name] = Stored(file, tuple(header.get_shape()), header.get_dtype())
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(
                f"{path.name} ({path.stat().st_size:,} bytes) is corrupt or cut short ({error}); "
                "fetch the file again."
            ) from None

    def read(self, name: str) -> Tensor:
        """One tensor, mapped from its file rather than copied: copy what stays, because a process that reads
        a mapping of a file that was cut short ends by SIGBUS."""
        return self.tensors[name].file.get_tensor(name)

    def same(self, one: str, other: str) -> bool:
        """Whether two tensors of the checkpoint hold the same numbers."""
        alike = self.tensors[one].dtype == self.tensors[other].dtype
        return alike and torch.equal(self.read(one), self.read(other))

    def check(self, expected: Mapping[str, Shape | None], ignorable: Iterable[str] = ()) -> None:
        """Hold the tensors against what the model needs. Raises CheckpointError for any difference."""
        ensure_complete(self.folder.name, "config.json", expected, self.tensors, ignorable)
        for name, shape in expected.items():
            if shape is not None:
                _check_one(name, self.tensors[name], shape)


def ensure_complete(
    where: str, source: str, expected: Collection[str], stored: Collection[str], ignorable: Iterable[str] = ()
) -> None:
    """Every tensor that the configuration demands is there, and every tensor there is demanded.

    The one check of all kinds of checkpoints: what it lets through, a loader reads whole. where: the folder's
    or file's name. source: what its configuration was read from.
    Raises CheckpointError with the names.
    """
    if missing := [name for name in expected if name not in stored]:
        raise CheckpointError(
            f"{where} lacks {_some(missing)} of the {len(expected)} tensors its {source} "
            f"asks for; fetch the whole checkpoint, with the {source} that belongs to it."
        )
    if extra := [name for name in stored if name not in expected and not _is_ignorable(name, ignorable)]:
        raise CheckpointError(
            f"{where} holds {_some(extra)} that its {source} has no place for; "
            f"its {source} belongs to another model, or this architecture is not supported."
        )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, one or a whole set of shards, all of them there.

    Without a file of the usual name, the only one there is (AutoGPTQ's gptq_model-4bit-128g.safetensors).
    Raises CheckpointError when there is none, when a shard is missing, or when there are only pickles.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (index := _index(folder)) is None:
        if len(files := _visible(folder, ".safetensors")) != 1:
            raise CheckpointError(_no_weights(folder))
        return files
    names = sorted(set(_weight_map(index).values()))
    if wrong := [name for name in names if not _SHARD.fullmatch(name)]:
        raise CheckpointError(
            f"{index.name} names {_some(wrong)}, which is outside of its own folder or no safetensors file; "
            "fetch the index again."
        )
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise CheckpointError(
            f"{folder.name} lacks {_some(missing)} of its {len(names)} shards; fetch them again."
        )
    return [folder / name for name in names]


def _index(folder: Path) -> Path | None:
    """The index of shards: that of the usual name, or the only one."""
    if (folder / INDEX).is_file():
        return folder / INDEX
    others = _visible(folder, ".safetensors.index.json")
    return others[0] if len(others) == 1 else None


def _visible(folder: Path, ending: str) -> list[Path]:
    """Files of such a name; not those with a dot in front, which a save that was cut short leaves behind."""
    return sorted(path for path in folder.glob(f"[!.]*{ending}") if path.is_file())


def _weight_map(index: Path) -> dict[str, str]:
    found = read_object(index).get("weight_map")
    if isinstance(found, dict) and found and all(isinstance(name, str) for name in found.values()):
        return found
    raise CheckpointError(
        f"{index.name} in {index.parent.name} is no index of shards (a weight_map); fetch it again."
    )


def ensure_short_header(path: Path) -> None:
    """Raises CheckpointError where a safetensors file claims a table of tensors that is too long to read."""
    with open(path, "rb") as file:
        claimed = int.from_bytes(file.read(8), "little")
    if MOST_HEADER < claimed <= path.stat().st_size:  # what exceeds the file, the library refuses
        raise CheckpointError(
            f"{path.name} claims a table of tensors of {claimed:,} bytes, and at most {MOST_HEADER:,} are "
            "read; fetch the file again."
        )


def ensure_backed(config: ModelConfig, names: Iterable[str], nbytes: int, what: str) -> None:
    """Hold a configuration against the files it came with, by arithmetic, before anything is built from it.

    names: of the stored tensors; nbytes: of their files; what: whose they are. Raises CheckpointError where
    the files hold fewer layers, or less than one bit for each number that the configuration describes.
    """
    stored = {match[1] for name in names if (match := _LAYER.search(name))}
    if config.num_hidden_layers > len(stored):
        raise CheckpointError(
            f"The configuration of {what} asks for {config.num_hidden_layers:,} layers and its files hold "
            f"{len(stored):,}; they belong to different models, so fetch it whole."
        )
    if (numbers := num_parameters(config)) > 8 * nbytes:
        raise CheckpointError(
            f"The configuration of {what} describes {numbers:,} weights and its files have {nbytes:,} bytes, "
            "less than a bit for each; they belong to different models, so fetch it whole."
        )


def _no_weights(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if several := [path.name for path in _visible(folder, ".safetensors")]:
        return (
            f"{folder.name} holds {_some(several)} and no {SINGLE} or index of shards that says which belong "
            "together; keep one, or fetch the index."
        )
    if pickles := [name for name in names if name.endswith(PICKLES)]:
        return (
            f"{folder.name} holds its weights only as pickle ({_some(pickles)}), which can run any code when "
            "opened; if you trust it, convert it with transformers' save_pretrained(safe_serialization=True)."
        )
    return f"{folder.name} holds no {SINGLE} and no {INDEX}; a model folder needs one of them."


def _is_ignorable(name: str, ignorable: Iterable[str]) -> bool:
    # older checkpoints store the rotary frequencies, which follow from the configuration
    return name.endswith("rotary_emb.inv_freq") or name in ignorable


def _check_one(name: str, stored: Stored, shape: Shape) -> None:
    if stored.shape != shape:
        raise CheckpointError(
            f"{name} has shape {list(stored.shape)} where config.json asks for {list(shape)}; "
            "config.json and weights belong to different models."
        )
    if stored.dtype not in _READABLE:
        raise CheckpointError(
            f"{name} is stored as {stored.dtype}; labcore reads {', '.join(_READABLE)}, so fetch the "
            "full-precision checkpoint."
        )


def _some(names: list[str], shown: int = 3) -> str:
    listed = ", ".join(map(shown_name, names[:shown]))
    return listed if len(names) <= shown else f"{listed} and {len(names) - shown} more ({len(names)} in all)"


def shown_name(name: str) -> str:
    """A name out of a file as a sentence may show it: no line breaks, not without end."""
    return name if len(name) <= 200 and name.isprintable() else ascii(name[:60])[1:-1] + "…"


def save_checkpoint(
    model: Transformer | Model, config: ModelConfig, folder: Path | str, dtype: str | torch.dtype = "float16"
) -> Path:
    """Write config.json and model.safetensors so that labcore and transformers both load them.

    model: the whole thing or its Transformer alone. The weights' file appears whole or not at all.
    Returns the folder. Raises ConfigError for a config no family can state, DeviceError for a wrong dtype.
    """
    transformer = model if isinstance(model, nn.Module) else model.transformer
    target = resolve_dtype(dtype, torch.device("cpu"))
    description = config.to_hugging_face() | {"torch_dtype": str(target).removeprefix("torch.")}
    # Cloned, because fused parts share one storage, which the format cannot say.
    tensors = {
        name: tensor.to("cpu", target, copy=True).contiguous()
        for name, tensor in weights.to_hugging_face(transformer, config).items()
    }
    home = Path(folder)
    home.mkdir(parents=True, exist_ok=True)
    atomic.write_text(home / "config.json", json.dumps(description, indent=2, sort_keys=True) + "\n")
    with atomic.replacing(home / SINGLE) as part:
        save_file(tensors, part, metadata={"format": "pt"})
    return home
