"""Keep the two files of a lesson in step: the percent script that is reviewed, the notebook that is opened.

Authors write `notebooks/NN_slug.py` (jupytext's percent format). `build` turns it into `NN_slug.ipynb`:
it executes the lesson, keeps the outputs of cells tagged `keep_output` (they are deterministic text, and
nbval compares them) and strips all others. Cell ids come from positions, so that a rebuild without changes
writes the same bytes.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from labcore.errors import LessonError
from labcore.lab.jupyter import KERNEL_ARGUMENTS, kernel_environment

KEEP_TAG = "keep_output"
COMPARE_TAG = "nbval-check-output"
_KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


def read_script(script: Path) -> NotebookNode:
    """A percent script as a notebook without outputs, ids by position, our kernel. Raises LessonError."""
    import jupytext

    try:
        notebook = jupytext.read(script, fmt="py:percent")
    except FileNotFoundError:
        raise LessonError(f"There is no script {script}; a lesson's notebook is built from it.") from None
    notebook.metadata = NotebookNode(kernelspec=dict(_KERNEL), language_info={"name": "python"})
    for index, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{index:02d}"
        tags = cell.metadata.get("tags", [])
        if (KEEP_TAG in tags) != (COMPARE_TAG in tags):
            raise LessonError(
                f"Cell {index} of {script.name} has one of the two tags {KEEP_TAG} and {COMPARE_TAG}; "
                "give it both or neither."
            )
    return nbformat.from_dict({**notebook, "nbformat": 4, "nbformat_minor": 5})


def execute(
    notebook: NotebookNode,
    folder: Path,
    *,
    timeout_s: int | None = 600,
    on_cell: Callable[[int, int], None] | None = None,
) -> NotebookNode:
    """Run all cells in a fresh kernel of this interpreter, in place. Raises LessonError naming the cell."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    def report(cell: Any, cell_index: int, execute_reply: Any) -> None:
        if on_cell is not None:
            on_cell(cell_index + 1, len(notebook.cells))

    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(
        notebook,
        timeout=timeout_s,
        kernel_name="python3",
        resources=resources,
        on_cell_executed=report,
        extra_arguments=KERNEL_ARGUMENTS,
    )
    try:
        with tempfile.TemporaryDirectory() as results, kernel_environment(Path(results)):
            client.execute()
    except CellExecutionError as failure:
        raise LessonError(f"The lesson fails with {failure.ename}: {failure.evalue}") from failure
    except (CellTimeoutError, DeadKernelError) as failure:
        raise LessonError(f"The lesson does not finish: {str(failure).strip().splitlines()[0]}") from failure
    return notebook


def strip(notebook: NotebookNode) -> NotebookNode:
    """A copy without outputs outside of `keep_output` cells, and without what a tool left in metadata.

    Execution counts stay: nbval compares nothing in a cell that has none.
    """
    from nbstripout import strip_output

    keys = ["metadata.papermill", "metadata.widgets", "cell.metadata.papermill", "cell.metadata.execution"]
    return strip_output(
        copy.deepcopy(notebook), keep_output=False, keep_count=True, keep_id=True, extra_keys=keys
    )


def build(script: Path, *, on_cell: Callable[[int, int], None] | None = None) -> Path:
    """Write the notebook beside a script: executed, then stripped. Returns its path. Raises LessonError."""
    notebook = execute(read_script(script), script.parent, on_cell=on_cell)
    target = script.with_suffix(".ipynb")
    target.write_text(dumps(strip(notebook)), encoding="utf-8")
    return target


def dumps(notebook: NotebookNode) -> str:
    """The notebook as JSON text that ends with one newline."""
    return nbformat.writes(notebook, version=4).rstrip("\n") + "\n"


def write_script(notebook_path: Path) -> Path:
    """The way back, for edits made in JupyterLab: write the percent script from the notebook."""
    import jupytext

    notebook = nbformat.read(notebook_path, as_version=4)
    notebook.metadata = NotebookNode(jupytext={"notebook_metadata_filter": "-all"})
    target = notebook_path.with_suffix(".py")
    target.write_text(jupytext.writes(notebook, fmt="py:percent"), encoding="utf-8")
    return target


def disagreements(notebook_path: Path) -> list[str]:
    """Where a notebook and its script differ in kind, tags or source of a cell: one line per place."""
    notebook = nbformat.read(notebook_path, as_version=4)
    script = read_script(notebook_path.with_suffix(".py"))
    ours, theirs = ([_essence(cell) for cell in book.cells] for book in (notebook, script))
    pairs = enumerate(zip(ours, theirs, strict=False))
    found = [f"cell {i}: {a} against {b}" for i, (a, b) in pairs if a != b]
    if len(ours) != len(theirs):
        found.append(f"{len(ours)} cells in the notebook, {len(theirs)} in the script")
    return found


def _essence(cell: NotebookNode) -> tuple[str, tuple[str, ...], str]:
    return cell.cell_type, tuple(sorted(cell.metadata.get("tags", []))), cell.source.strip()
