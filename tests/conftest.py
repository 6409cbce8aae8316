"""Settings of the whole suite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch is imported: side by side, workers and the kernels they start would fight over the cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nothing here touches the network, and a tokenizer's own threads gain nothing on short texts.
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import torch
from hypothesis import settings

ROOT = Path(__file__).parents[1]

# Timing is never a test: the machine may be busy. Examples are the same at every run.
settings.register_profile("lab", deadline=None, derandomize=True)
settings.load_profile("lab")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first, so that no worker is left alone with them; GPU tests only where one is."""
    items.sort(
        key=lambda item: not (item.get_closest_marker("browser") or item.get_closest_marker("notebook"))
    )
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _results_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes into the results of whoever runs the tests."""
    monkeypatch.setenv("LABCORE_RESULTS", str(tmp_path / "results"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT
