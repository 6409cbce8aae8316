"""Lessons are executed once per mode, and every test reads that one execution."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from labcore.lab import runner
from labcore.lab.runner import Lesson, LessonRun, Settings

Execute = Callable[[Lesson, str], LessonRun]


@pytest.fixture(scope="session")
def execute(tmp_path_factory: pytest.TempPathFactory) -> Execute:
    """A lesson in a mode, at quick scale; the executed notebook also holds what an HTML page needs."""
    done: dict[tuple[str, str], LessonRun] = {}
    out = tmp_path_factory.mktemp("runs")

    def run(lesson: Lesson, mode: str) -> LessonRun:
        key = (lesson.name, mode)
        if key not in done:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("PLOTLY_RENDERER", "plotly_mimetype+notebook")
                done[key] = runner.run_lesson(lesson, Settings(mode=mode), out, cell_timeout_s=300)
        return done[key]

    return run
