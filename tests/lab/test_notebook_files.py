"""From percent script to notebook and back, on a small lesson made for the test."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from labcore.errors import LessonError
from labcore.lab import notebook_files

SCRIPT = """# %% [markdown]
# # A lesson

# %% tags=["parameters"]
SEED: int = 3  # which draw

# %%
print("seconds vary")

# %% tags=["keep_output", "nbval-check-output"]
print(SEED * 2)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "01_small.py"
    path.write_text(SCRIPT)
    return path


def test_build_executes_and_keeps_only_marked_outputs(script: Path) -> None:
    book = nbformat.read(notebook_files.build(script), as_version=4)
    nbformat.validate(book)
    assert [cell.cell_type for cell in book.cells] == ["markdown", "code", "code", "code"]
    assert [cell.outputs for cell in book.cells[1:3]] == [[], []]
    assert book.cells[3].outputs[0].text == "6\n"
    assert [cell.execution_count for cell in book.cells[1:]] == [1, 2, 3]


def test_rebuild_writes_the_same_bytes(script: Path) -> None:
    first = notebook_files.build(script).read_bytes()
    assert notebook_files.build(script).read_bytes() == first


def test_a_built_pair_agrees_and_an_edit_is_seen(script: Path) -> None:
    path = notebook_files.build(script)
    assert notebook_files.disagreements(path) == []
    script.write_text(SCRIPT.replace("SEED * 2", "SEED * 3"))
    assert len(notebook_files.disagreements(path)) == 1
    script.write_text(SCRIPT + "\n# %%\nprint(1)\n")
    assert notebook_files.disagreements(path) == ["4 cells in the notebook, 5 in the script"]


def test_the_way_back_gives_the_same_cells(script: Path) -> None:
    path = notebook_files.build(script)
    script.unlink()
    assert notebook_files.write_script(path) == script
    assert notebook_files.disagreements(path) == []


def test_papermill_traces_are_stripped(script: Path) -> None:
    book = notebook_files.read_script(script)
    book.metadata["papermill"] = {"duration": 1.0}
    book.metadata["widgets"] = {"state": {}}
    book.cells[1].metadata["papermill"] = {"status": "completed"}
    book.cells[1].metadata["execution"] = {"iopub.status.busy": "2026"}
    clean = notebook_files.strip(book)
    assert set(clean.metadata) == {"kernelspec", "language_info"}
    assert dict(clean.cells[1].metadata) == {"tags": ["parameters"]}


def test_failing_lesson_is_not_written(script: Path) -> None:
    script.write_text(SCRIPT + "\n# %%\n1 / 0\n")
    with pytest.raises(LessonError, match="ZeroDivisionError"):
        notebook_files.build(script)
    assert not script.with_suffix(".ipynb").exists()


def test_half_tagged_cell_is_refused(script: Path) -> None:
    """nbval would compare what was stripped, or compare nothing."""
    script.write_text(SCRIPT.replace(', "nbval-check-output"', ""))
    with pytest.raises(LessonError, match="Cell 3 of 01_small.py"):
        notebook_files.build(script)


def test_missing_script_is_named(tmp_path: Path) -> None:
    with pytest.raises(LessonError, match=r"09_absent\.py"):
        notebook_files.build(tmp_path / "09_absent.py")
