"""Settings of the whole suite."""

from __future__ import annotations

from hypothesis import settings

# Timing is never a test: the machine may be busy. Examples are the same at every run.
settings.register_profile("lab", deadline=None, derandomize=True)
settings.load_profile("lab")
