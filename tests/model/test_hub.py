"""Loading by Hub id, with the real client against a Hub of our own on this machine."""

from __future__ import annotations

import builtins
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import labcore
from labcore.errors import HubError
from labcore.model import hub
from tests import checkpoints
from tests.model.hub_server import COMMIT, FakeHub, serve
from tests.quant import foreign_folders

pytest.importorskip("huggingface_hub")
CLIENT = Path(__file__).with_name("hub_client.py")
ROOT = Path(__file__).parents[2]


def client(home: Path, endpoint: str, *sources: str, **settings: str) -> dict[str, Any]:
    """Load sources in a process whose Hub is `endpoint` and whose cache lies in `home`."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    env |= {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "NO_PROXY": "*",
    } | settings
    command = [sys.executable, str(CLIENT), *sources]
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    assert "%|" not in run.stderr  # progress=False: no bar
    return found


@pytest.fixture(scope="module")
def repos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hub")
    folders = {
        name: root / name for name in ("tiny", "shards", "gptq", "pickle", "empty", "bare", "gpt2", "huge")
    }
    checkpoints.write("llama", folders["tiny"])
    (folders["tiny"] / "pytorch_model.bin").write_bytes(b"never fetched")
    (folders["tiny"] / "consolidated.safetensors").write_bytes(b"never fetched either")
    checkpoints.write("qwen3", folders["shards"], shard_size="100KB")
    foreign_folders.write(folders["gptq"], "gptq")
    foreign_folders.as_auto_gptq(folders["gptq"])
    for name in ("pickle", "empty", "gpt2", "huge"):
        folders[name].mkdir()
        config = (folders["tiny"] / "config.json").read_text()
        (folders[name] / "config.json").write_text(config)
    (folders["pickle"] / "pytorch_model.bin").write_bytes(b"a pickle")
    checkpoints.edit_config(folders["gpt2"], model_type="gpt2", architectures=["GPT2LMHeadModel"])
    checkpoints.edit_config(folders["huge"], num_hidden_layers=80, hidden_size=2**15, intermediate_size=2**17)
    (folders["huge"] / "model.safetensors").write_bytes(b"must not be fetched")
    folders["bare"].mkdir()
    (folders["bare"] / "README.md").write_text("no model here")
    return {f"lab/{name}": folder for name, folder in folders.items()}


@pytest.fixture(scope="module")
def server(repos: dict[str, Path]) -> Iterator[FakeHub]:
    with serve(repos) as running:
        yield running


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


SOURCES = (
    "lab/tiny",
    "lab/shards",
    "lab/gptq",
    f"lab/tiny@{COMMIT}",
    "lab/tiny@v9",
    "lab/gated",
    "lab/nowhere",
    "lab/broken",
)
SOURCES += ("lab/pickle", "lab/empty", "lab/bare", "lab/gpt2", "lab/huge", "lab/has--dashes")


@pytest.fixture(scope="module")
def outcomes(server: FakeHub, home: Path) -> dict[str, Any]:
    return client(home, server.url, *SOURCES)


@pytest.mark.parametrize("source", ["lab/tiny", "lab/shards", "lab/gptq", f"lab/tiny@{COMMIT}"])
def test_a_model_is_fetched_and_is_the_same_as_its_folder(
    outcomes: dict[str, Any], repos: dict[str, Path], source: str
) -> None:
    repo = source.split("@")[0]
    expected = labcore.logits(labcore.load(repos[repo], device="cpu"), [5, 6, 7])[0, -1, :4].tolist()
    assert outcomes[source] == {"name": repo, "logits": pytest.approx(expected, abs=1e-6)}


@pytest.mark.parametrize(
    ("source", "error", "sentence"),
    [
        (
            "lab/gated",
            "HubError",
            "lab/gated is gated: ask for access at https://huggingface.co/lab/gated, then log in",
        ),
        (
            "lab/nowhere",
            "HubError",
            "There is no folder 'lab/nowhere' here and no public model of that name on the Hub",
        ),
        ("lab/tiny@v9", "HubError", "lab/tiny has no revision 'v9'; see its branches"),
        ("lab/bare", "HubError", "lab/bare has no config.json at revision main"),
        (
            "lab/pickle",
            "HubError",
            "lab/pickle holds its weights only as pickle, which can run any code when opened",
        ),
        ("lab/empty", "HubError", "lab/empty holds no model.safetensors"),
        ("lab/gpt2", "ConfigError", "Architecture 'GPT2LMHeadModel' is not supported"),
        ("lab/huge", "OutOfMemory", "billion weights of lab/huge in float32 need"),
        ("lab/has--dashes", "HubError", "'lab/has--dashes' is not a Hub id; write it as owner/name"),
        ("lab/broken", "HubError", "The Hub answered with an error for lab/broken ("),
    ],
)
def test_refused_in_one_sentence(outcomes: dict[str, Any], source: str, error: str, sentence: str) -> None:
    assert outcomes[source].get("error") == error, outcomes[source]
    assert sentence in outcomes[source]["sentence"]
    assert "\n" not in outcomes[source]["sentence"]


def test_only_what_is_needed_is_fetched(outcomes: dict[str, Any], server: FakeHub) -> None:
    fetched = {path for path in server.asked if "resolve" in path}
    assert any(path.endswith("model.safetensors") for path in fetched)
    assert not [path for path in fetched if path.endswith((".bin", "consolidated.safetensors"))]
    assert not [path for path in fetched if path.startswith("lab/huge") and not path.endswith("config.json")]


def test_offline_a_cached_model_loads_and_another_does_not(
    outcomes: dict[str, Any], server: FakeHub, home: Path
) -> None:
    before = len(server.asked)
    found = client(home, server.url, "lab/tiny", "lab/other", "lab/huge", HF_HUB_OFFLINE="1")
    assert found["lab/tiny"] == outcomes["lab/tiny"]
    assert "HF_HUB_OFFLINE is set; unset it" in found["lab/other"]["sentence"]
    assert found["lab/huge"]["error"] == "OutOfMemory"  # its config.json is cached
    assert len(server.asked) == before


def test_without_network_a_cached_model_loads_and_another_does_not(
    outcomes: dict[str, Any], home: Path
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, but nobody listens
        found = client(home, f"http://127.0.0.1:{unused.getsockname()[1]}", "lab/tiny", "lab/other")
    assert found["lab/tiny"] == outcomes["lab/tiny"]
    assert found["lab/other"]["error"] == "HubError"
    assert "There is no folder 'lab/other' here, the Hub cannot be reached" in found["lab/other"]["sentence"]


def test_without_the_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def none_here(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("huggingface_hub"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", none_here)
    with pytest.raises(
        HubError, match=r"huggingface_hub, which is not installed; run pip install 'labcore\[hub\]'"
    ):
        labcore.load("lab/tiny")


def test_a_full_disk_and_bugs() -> None:
    sentence = hub._explain("lab/tiny", None, OSError(28, "No space left on device"))
    assert sentence is not None
    assert "disk is full" in sentence
    assert hub._explain("lab/tiny", None, ZeroDivisionError()) is None


def test_loading_a_folder_does_not_import_the_client(repos: dict[str, Path]) -> None:
    load = f"labcore.load({str(repos['lab/tiny'])!r})"
    code = f"import labcore, sys; {load}; print('huggingface_hub' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
