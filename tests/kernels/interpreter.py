"""Triton's kernels without a GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="here the kernels run on the GPU itself")


def interpreted(code: str) -> str:
    """What code prints in a process whose Triton interprets: it decides that when it is imported."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()
