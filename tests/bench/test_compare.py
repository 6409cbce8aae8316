"""`labcore compare`: what runs have in common, what cannot be compared and why, and the page it draws."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from labcore.bench import compare as comparing
from labcore.bench import compare_runs
from labcore.catalog import data_dir
from labcore.cli import app

REFERENCE = data_dir() / "reference_runs"
EIGHT, ONE = "generate-llama-3.1-8b-h200", "generate-llama-3.2-1b-h200"


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, words)], terminal_width=200)


def said(result: Result) -> str:
    return " ".join(result.output.split())


@pytest.mark.parametrize("path", sorted(REFERENCE.glob("*.json")), ids=lambda path: path.stem)
def test_every_reference_run_can_be_read(path: Path) -> None:
    (found,), passed_over = compare_runs.find([path.stem])
    assert found.name == path.stem
    assert found.device
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found.date)
    assert passed_over == []


def test_a_run_beside_a_slower_copy_of_itself(tmp_path: Path) -> None:
    """Every value doubled: each measurement is in common, at twice or half the first."""
    data = json.loads((REFERENCE / "speculate-cpu.json").read_text(encoding="utf-8"))
    (tmp_path / "mine.json").write_text(json.dumps(data), encoding="utf-8")
    runs, _ = compare_runs.find(["speculate-cpu", str(tmp_path / "mine.json")])
    compared = comparing.compare(runs)
    assert len(compared.measurements) > 10
    for one in compared.measurements:
        assert [one.ratio(point) for point in one.points] == pytest.approx([1.0, 1.0])


def test_different_models_are_compared_by_share_only() -> None:
    compared = comparing.compare(compare_runs.find([EIGHT, ONE])[0])
    assert compared.measurements
    assert all(0 < point.value < 100 for one in compared.measurements for point in one.points)
    assert any("are different models, so not their speeds are compared" in note for note in compared.notes)


def test_what_is_in_one_run_only_is_said() -> None:
    result = run("speculate-cpu", "serving-qwen3-0.6b-h200")
    assert "have no measurement in common" in said(result)


def test_learners_results_are_runs(tmp_path: Path) -> None:
    for name, speed in (("ada", 100.0), ("bo", 50.0)):
        folder = tmp_path / name
        folder.mkdir()
        entry = {"question": "How fast?", "unit": "tok/s", "value": 40, "measured": speed}
        machine = {"name": f"{name}'s CPU", "device": "cpu", "threads": 2, "torch_version": "2"}
        data = {"lesson": "01", "mode": "learner", "machine": machine}
        data |= {"saved_at": "2026-01-02T00:00:00+00:00", "predictions": {"01.1": entry}}
        data |= {"exercises": {}, "measurements": {}}
        (folder / "lesson-01.json").write_text(json.dumps(data), encoding="utf-8")
    compared = comparing.compare(compare_runs.find([str(tmp_path / "ada"), str(tmp_path / "bo")])[0])
    (one,) = compared.measurements
    assert [one.ratio(point) for point in one.points] == pytest.approx([1.0, 0.5])


def test_the_page_asks_nobody_and_names_device_versions_and_date(tmp_path: Path) -> None:
    page = tmp_path / "runs.html"
    result = run(EIGHT, ONE, "--plot", page)
    assert result.exit_code == 0, result.output
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", text)
    for word in ("NVIDIA H200", "2.11.0+cu130", "2026-"):
        assert word in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{half", "is damaged: it is no JSON"),
        ('{"a": 1}', "holds no run; give what `labcore bench … --out` or a lesson wrote"),
        (None, "There is no file or folder"),
    ],
)
def test_what_is_no_run_is_named(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "run.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    result = run(path, "all-cpu")
    assert result.exit_code == 2
    assert words in said(result)


def test_an_unknown_reference_run_is_answered_with_those_there_are() -> None:
    result = run("generate-llama-8b", "all-cpu")
    assert result.exit_code == 2
    assert EIGHT in said(result)
