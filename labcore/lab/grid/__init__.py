"""Lessons × devices × models: run here one after the other, or over the workers of a dask cluster."""

from __future__ import annotations

from labcore.lab.grid.jobs import Job, Outcome, jobs, perform
from labcore.lab.grid.run import Grid, run_grid, table

__all__ = ["Grid", "Job", "Outcome", "jobs", "perform", "run_grid", "table"]
