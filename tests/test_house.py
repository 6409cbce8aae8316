"""The shape of the code: floors, light imports, small rooms, and files that agree with each other."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from statistics import median

import pytest
from importlinter.cli import lint_imports

# Not tqdm: torch itself imports it where it finds it.
LAB_PACKAGES = {"IPython", "ipywidgets", "plotly", "papermill", "nbformat", "typer", "rich", "transformers"}


def _functions(path: Path) -> list[tuple[str, int]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    return [(f"{path.name}:{node.name}", (node.end_lineno or 0) - node.lineno + 1) for node in found]


@pytest.fixture(scope="module")
def sources(root: Path) -> list[Path]:
    return sorted((root / "labcore").rglob("*.py"))


def test_rooms_import_only_from_the_floors_below(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    failed = lint_imports(no_cache=True)
    assert not failed, capsys.readouterr().out


def test_functions_stay_short(sources: list[Path]) -> None:
    lengths = [entry for path in sources for entry in _functions(path)]
    assert [entry for entry in lengths if entry[1] > 60] == []
    assert median(length for _, length in lengths) <= 12


def test_files_stay_short(sources: list[Path]) -> None:
    long = {
        path.name: n for path in sources if (n := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert long == {}


def _imported_by(statement: str) -> set[str]:
    """Top-level modules in memory after a statement ran in a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_brings_no_package_of_the_lab() -> None:
    assert not _imported_by("import labcore") & LAB_PACKAGES


def test_engine_runs_without_the_packages_of_the_lab() -> None:
    code = "import labcore; labcore.load, labcore.generate, labcore.logits, labcore.perf, labcore.catalog"
    assert not _imported_by(code) & LAB_PACKAGES


def test_notebook_room_opens_without_plotting() -> None:
    assert not _imported_by("from labcore import lab") & {"plotly", "ipywidgets"}


@pytest.fixture(scope="module")
def project(root: Path) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_dependencies_are_ranges(project: dict) -> None:
    extras = [entry for listed in project["optional-dependencies"].values() for entry in listed]
    for entry in [*project["dependencies"], *extras]:
        assert re.fullmatch(
            r"[A-Za-z0-9_.-]+>=[0-9.]+(,<[0-9.]+)?(; platform_system == '\w+')?|labcore\[[a-z]+\]", entry
        ), entry


def test_engine_depends_on_four_packages(project: dict) -> None:
    names = {re.split(r"[<>=\[]", entry)[0] for entry in project["dependencies"]}
    assert names == {"torch", "numpy", "tokenizers", "safetensors"}


def test_conda_installs_the_project_by_pip(root: Path, project: dict) -> None:
    """environment.yml names Python and pip only; everything else comes from pyproject.toml."""
    text = (root / "environment.yml").read_text(encoding="utf-8")
    listed = re.findall(r"^\s*- (.+?):?$", text, flags=re.MULTILINE)
    python = f"python{project['requires-python']}"
    assert listed == ["conda-forge", python, "pip", "pip", "-e .[lab,test]"]
    assert {"lab", "test"} <= set(project["optional-dependencies"])


def test_makefile_asks_for_the_python_of_the_project(root: Path, project: dict) -> None:
    minor = project["requires-python"].removeprefix(">=3.")
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    assert set(re.findall(r"version_info < \(3, (\d+)\)", makefile)) == {minor}


def test_no_package_index_is_named(root: Path) -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    hosts = re.compile(r"(index-url|pypi\.org|pythonhosted|download\.pytorch\.org|registry\.npmjs)")
    kinds = {".py", ".md", ".toml", ".yml", ".ipynb", ".sh", ""}
    files = [root / name for name in tracked.stdout.split("\0") if name and Path(name).suffix in kinds]
    named = [
        path.relative_to(root).as_posix()
        for path in files
        if path.is_file()
        and path != Path(__file__)
        and hosts.search(path.read_text(encoding="utf-8", errors="ignore"))
    ]
    assert named == []
