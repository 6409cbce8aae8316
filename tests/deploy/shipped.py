"""Modules of deploy/jupyterhub, which is no package: the hub puts their folder on its path."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

DEPLOY = Path(__file__).parents[2] / "deploy"
HERE = DEPLOY / "jupyterhub"
START = DEPLOY / "container" / "start.sh"


def load(name: str) -> ModuleType:
    """As the hub imports it."""
    if str(HERE) not in sys.path:
        sys.path.insert(0, str(HERE))
    return importlib.import_module(name)
