"""Files crafted to make a loader hang, eat memory or answer nonsense; and the sentence for each."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

CONFIG, TOKENIZER, INDEX = "config.json", "tokenizer.json", "model.safetensors.index.json"
WEIGHTS, GENERATION = "model.safetensors", "generation_config.json"


class Case(NamedTuple):
    """spoil: what it does to a copy of a good folder; it may return another source to load."""

    name: str
    spoil: Callable[[Path], Path | None]
    error: str
    sentence: str


# config.json


def config(**changes: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / CONFIG
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def written(name: str, text: str | bytes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())

    return spoil


def replaced(name: str, by: Callable[[Path], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        by(folder / name)

    return spoil


def _sparse(path: Path, size: int = 1 << 30) -> None:
    with open(path, "wb") as file:
        file.truncate(size)


def _wide(folder: Path) -> None:
    config(hidden_size=2**30, head_dim=2**28, intermediate_size=2**30)(folder)


def _beyond_floats(folder: Path) -> None:
    text = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(text.replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e999'))


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64}  # type: ignore[dict-item]
DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000
CONFIGS = [
    Case(
        "layers-1e5",
        config(num_hidden_layers=10**5),
        "ConfigError",
        "num_hidden_layers is 100000, and labcore takes at most 2,048",
    ),
    Case("layers-1e9", config(num_hidden_layers=10**9), "ConfigError", "num_hidden_layers is 1000000000"),
    Case(
        "layers-2000",
        config(num_hidden_layers=2000),
        "CheckpointError",
        "asks for 2,000 layers and its files hold 3",
    ),
    Case(
        "hidden-2^40",
        config(hidden_size=2**40),
        "ConfigError",
        r"hidden_size is 1099511627776, and labcore takes at most 2,147,483,647",
    ),
    Case("vocab-2^63", config(vocab_size=2**63), "ConfigError", "vocab_size is 9223372036854775808"),
    Case(
        "wide",
        _wide,
        "CheckpointError",
        r"describes [\d,]+ weights and its files have [\d,]+ bytes, less than a bit",
    ),
    Case("vocab-2^31", config(vocab_size=2**31 - 1), "CheckpointError", "less than a bit for each"),
    Case("head-2^31", config(head_dim=2**31 - 2), "CheckpointError", "less than a bit for each"),
    Case(
        "context-2^62",
        config(max_position_embeddings=2**62),
        "ConfigError",
        "max_position_embeddings is 4611686018427387904",
    ),
    Case(
        "digits",
        written(CONFIG, '{"hidden_size": ' + "9" * 5_000 + "}"),
        "ConfigError",
        r"is not valid JSON \(Exceeds the limit",
    ),
    Case(
        "many-digits",
        config(hidden_size=int("9" * 4_000)),
        "ConfigError",
        r"hidden_size is 9+\.\.\.9+, and labcore",
    ),
    Case("heads-0", config(num_attention_heads=0), "ConfigError", "num_attention_heads is 0; it must be"),
    Case(
        "eps-nan",
        written(CONFIG, '{"model_type": "llama", "rms_norm_eps": NaN}'),
        "ConfigError",
        "it holds NaN, which JSON has no word for",
    ),
    Case("eps-inf", config(rms_norm_eps=float("inf")), "ConfigError", "it holds Infinity"),
    Case(
        "eps-1e999", _beyond_floats, "ConfigError", "rms_norm_eps is inf; it must be a finite number above 0"
    ),
    Case(
        "eps-negative",
        config(rms_norm_eps=-1e-6),
        "ConfigError",
        "rms_norm_eps is -1e-06; it must be a finite number above 0",
    ),
    Case("eps-0", config(rms_norm_eps=0), "ConfigError", "rms_norm_eps is 0; it must be"),
    Case("eps-text", config(rms_norm_eps="1e-6"), "ConfigError", "rms_norm_eps is '1e-6', of the wrong kind"),
    Case(
        "layers-text",
        config(num_hidden_layers="3"),
        "ConfigError",
        "num_hidden_layers is '3', of the wrong kind",
    ),
    Case(
        "layers-float",
        config(num_hidden_layers=3.0),
        "ConfigError",
        "num_hidden_layers is 3.0, of the wrong kind",
    ),
    Case(
        "layers-true",
        config(num_hidden_layers=True),
        "ConfigError",
        "num_hidden_layers is True, of the wrong kind",
    ),
    Case(
        "layers-list",
        config(num_hidden_layers=[3]),
        "ConfigError",
        r"num_hidden_layers is \[3\], of the wrong kind",
    ),
    Case(
        "tie-text",
        config(tie_word_embeddings="false"),
        "ConfigError",
        "tie_word_embeddings is 'false', of the wrong kind; it must be true or false",
    ),
    Case("bias-number", config(attention_bias=0), "ConfigError", "attention_bias is 0, of the wrong kind"),
    Case(
        "eos-negative",
        config(eos_token_id=-1),
        "ConfigError",
        "eos_token_id is -1; it must be a whole number of at least 0",
    ),
    Case(
        "eos-text", config(eos_token_id=["</s>"]), "ConfigError", "eos_token_id is '</s>', of the wrong kind"
    ),
    Case(
        "architectures",
        config(model_type="x", architectures={"a": 1}),
        "ConfigError",
        "Architecture 'x' is not supported",
    ),
    Case(
        "model-type",
        config(model_type=["llama"], architectures=None),
        "ConfigError",
        r"Architecture \['llama'\] is not supported",
    ),
    Case(
        "rope-list", config(rope_parameters=[1]), "ConfigError", "rotary settings are .1., of the wrong kind"
    ),
    Case(
        "rope-kind",
        config(rope_parameters={"rope_type": {"a": 1}}),
        "ConfigError",
        "Rotary scaling {'a': 1} is not supported",
    ),
    Case(
        "rope-flat",
        config(rope_parameters=LLAMA3 | {"low_freq_factor": 4.0}),
        "ConfigError",
        "low_freq_factor is 4 and high_freq_factor is 4; rotary scaling 'llama3' needs",
    ),
    Case(
        "rope-theta",
        config(rope_parameters={"rope_theta": 0}),
        "ConfigError",
        "rope_theta is 0; it must be a finite number above 0",
    ),
    Case(
        "rope-partial",
        config(rope_parameters={"partial_rotary_factor": "half"}),
        "ConfigError",
        "partial_rotary_factor is 'half'",
    ),
    Case("config-fifo", replaced(CONFIG, os.mkfifo), "ConfigError", r"config\.json is no regular file"),
    Case("config-folder", replaced(CONFIG, os.mkdir), "ConfigError", r"config\.json is no regular file"),
    Case(
        "config-device",
        replaced(CONFIG, lambda p: p.symlink_to("/dev/zero")),
        "ConfigError",
        r"config\.json is no regular file",
    ),
    Case(
        "config-loop",
        replaced(CONFIG, lambda p: p.symlink_to(p)),
        "ConfigError",
        r"config\.json cannot be read",
    ),
    Case(
        "config-huge",
        replaced(CONFIG, _sparse),
        "ConfigError",
        r"config\.json has 1,073,741,824 bytes, where at most 4,194,304 are read",
    ),
    Case("config-deep", written(CONFIG, DEEP), "ConfigError", "more than 64 deep"),
    Case(
        "config-deep-100",
        written(CONFIG, '{"a":' * 100 + "1" + "}" * 100),
        "ConfigError",
        "more than 64 deep",
    ),
    Case("config-list", written(CONFIG, "[]"), "ConfigError", "holds no JSON object"),
    Case("config-bytes", written(CONFIG, b"\xff\xfe\x00"), "ConfigError", "is not valid JSON"),
    Case(
        "config-dense",
        written(CONFIG, "[" + "[]," * 1_390_000 + "[]]"),
        "ConfigError",
        "has 1,390,002 objects and lists, and at most 100,000 are read",
    ),
]

# Other small files, and the weights'


def spoilt(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return spoil


def header(table: Any, length: int | None = None, body: int = 64) -> bytes:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + b"\0" * body


def entry(shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


def index(*names: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "model-1.safetensors")
        names_by = {f"tensor{i}": name for i, name in enumerate(names)}
        (folder / INDEX).write_text(json.dumps({"weight_map": names_by}))

    return spoil


def _twice(folder: Path) -> None:
    index("model-1.safetensors", "model-2.safetensors")(folder)
    save_file({"model.norm.weight": torch.ones(64)}, folder / "model-2.safetensors")


def _numbered(folder: Path) -> None:
    index()(folder)
    (folder / INDEX).write_text('{"weight_map": [1]}')


def _long_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 90 << 20))
    os.truncate(path, 1 << 30)


NORM = "model.norm.weight"
CUT = r"model\.safetensors .+ is corrupt or cut short"
FILES = [
    Case(
        "ends-broken",
        written(GENERATION, "{"),
        "CheckpointError",
        r"generation_config\.json is not valid JSON",
    ),
    Case(
        "ends-text",
        written(GENERATION, '{"eos_token_id": "</s>"}'),
        "ConfigError",
        r"eos_token_id of generation_config\.json is '</s>'",
    ),
    Case("ends-fifo", replaced(GENERATION, os.mkfifo), "CheckpointError", "is no regular file"),
    Case("header-2^60", written(WEIGHTS, header({}, 2**60)), "CheckpointError", CUT),
    Case(
        "header-long",
        replaced(WEIGHTS, _long_header),
        "CheckpointError",
        "claims a table of tensors of 94,371,840 bytes",
    ),
    Case(
        "header-overlap",
        written(WEIGHTS, header({"a": entry([8], 0, 32), "b": entry([8], 16, 48)}, body=48)),
        "CheckpointError",
        CUT,
    ),
    Case("header-beyond", written(WEIGHTS, header({"a": entry([2**40], 0, 2**42)})), "CheckpointError", CUT),
    Case(
        "header-overflow",
        written(WEIGHTS, header({"a": entry([2**62, 2**62], 0, 64)})),
        "CheckpointError",
        CUT,
    ),
    Case("header-deep", written(WEIGHTS, header(b'{"a":' * 9_000)), "CheckpointError", CUT),
    Case("index-out", index("../model.safetensors"), "CheckpointError", "outside of its own folder"),
    Case("index-absolute", index("/etc/passwd"), "CheckpointError", "outside of its own folder"),
    Case("index-parent", index(".."), "CheckpointError", "outside of its own folder"),
    Case(
        "index-long",
        index("a" * 5_000 + ".safetensors"),
        "CheckpointError",
        "outside of its own folder or no safetensors file",
    ),
    Case(
        "index-odd",
        index("\ud800\n.safetensors"),
        "CheckpointError",
        "outside of its own folder or no safetensors file",
    ),
    Case("index-number", _numbered, "CheckpointError", "is no index of shards"),
    Case("in-two-files", _twice, "CheckpointError", f"{NORM} is in two files"),
    Case(
        "nan",
        spoilt(lambda t: t[NORM].__setitem__(3, float("nan"))),
        "CheckpointError",
        "norm.weight of nan holds NaN or infinity in float32",
    ),
    Case(
        "infinity",
        spoilt(lambda t: t["lm_head.weight"].__setitem__((3, 3), float("-inf"))),
        "CheckpointError",
        "lm_head.weight of infinity holds NaN or infinity",
    ),
    Case(
        "long-name",
        spoilt(lambda t: t.update({"x\n" * 9_000: torch.ones(1)})),
        "CheckpointError",
        "holds .{1,200} that its config.json has no place for",
    ),
]
