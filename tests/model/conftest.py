from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import checkpoints


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    """One of tests.checkpoints.CASES by name: its folder, and the transformers model that wrote it."""
    written: dict[str, tuple[Path, Any]] = {}

    def get(case: str) -> tuple[Path, Any]:
        if case not in written:
            folder = tmp_path_factory.mktemp(case)
            written[case] = (folder, checkpoints.write(case, folder))
        return written[case]

    return get


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A fresh tiny Llama checkpoint that a test may spoil."""
    checkpoints.write("llama", tmp_path / "tiny")
    return tmp_path / "tiny"
