"""The command line as a user meets it: what it prints, where, and the code it ends with."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

import labcore
from labcore import doctor
from labcore.cli import app
from labcore.errors import CheckpointError, SamplingError
from labcore.generation import Step

runner = CliRunner()


def _fake_stream(*texts: str) -> Any:
    """A `labcore.stream` that says `texts`, remembers its settings and takes known times."""

    def stream(model: Any, prompt: str, **settings: Any) -> Iterator[Step]:
        stream.settings = settings  # type: ignore[attr-defined]
        for index, text in enumerate(texts):
            phase = "decode" if index else "prefill"
            yield Step(index, phase, index, text, seconds=0.05 if index else 0.3)

    return stream


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Any:
    stream = _fake_stream("Once", " upon", " a time")
    monkeypatch.setattr(labcore, "load", lambda *a, **k: SimpleNamespace(random_weights=False), raising=False)
    monkeypatch.setattr(labcore, "stream", stream, raising=False)
    return stream


def test_version() -> None:
    result = runner.invoke(app, ["--version"])
    assert result.output == f"labcore {labcore.__version__}\n"


def test_generate_streams_the_text_and_nothing_else(engine: Any) -> None:
    result = runner.invoke(app, ["generate", "Hello"])
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Once upon a time\n", "")


def test_generate_hands_its_settings_to_the_engine(engine: Any) -> None:
    words = "--temperature 0.7 --top-k 5 --top-p 0.9 --seed 3 --cache growing --stop END --max-new-tokens 9"
    runner.invoke(app, ["generate", "Hello", *words.split()], catch_exceptions=False)
    expected = {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "seed": 3, "cache": "growing", "stop": ("END",)}
    assert expected.items() <= engine.settings.items()
    assert engine.settings["max_new_tokens"] == 9


def test_stats_report_times_with_tpot_after_the_first_token(engine: Any) -> None:
    result = runner.invoke(app, ["generate", "Hello", "--stats"])
    # 0.3 s to the first token, then two gaps of 50 ms: 3 tokens in 0.4 s
    assert result.stderr == "3 tokens · TTFT 300.0 ms · TPOT 50.00 ms · 7.5 tok/s\n"


def test_user_error_is_one_sentence_and_code_2(monkeypatch: pytest.MonkeyPatch, engine: Any) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise SamplingError("temperature is -1; it must be 0 or above [brackets stay].")

    monkeypatch.setattr(labcore, "stream", refuse, raising=False)
    result = runner.invoke(app, ["generate", "Hello", "--temperature", "-1"])
    assert result.exit_code == 2
    assert result.stderr == "temperature is -1; it must be 0 or above [brackets stay].\n"


def test_a_narrow_encoding_ends_no_answer(monkeypatch: pytest.MonkeyPatch, engine: Any) -> None:
    monkeypatch.setattr(labcore, "stream", _fake_stream("caf", "é", " 🙂"), raising=False)
    result = CliRunner(charset="ascii").invoke(app, ["generate", "Hello", "--stats"])
    assert (result.exit_code, result.stdout) == (0, "caf? ?\n")
    assert CliRunner(charset="ascii").invoke(app, ["generate", "--help"]).exit_code == 0


def test_a_full_disk_is_one_sentence(monkeypatch: pytest.MonkeyPatch, engine: Any) -> None:
    def fill(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(labcore, "stream", fill, raising=False)
    result = runner.invoke(app, ["generate", "Hello"])
    assert result.exit_code == 2
    assert result.stderr == "There is no space left for the output; make room, or write to another disk.\n"


def test_debug_shows_where_an_error_came_from(monkeypatch: pytest.MonkeyPatch, engine: Any) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise CheckpointError("no such model.")

    monkeypatch.setattr(labcore, "load", refuse, raising=False)
    result = runner.invoke(app, ["--debug", "generate", "Hello"])
    assert isinstance(result.exception, CheckpointError)


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, engine: Any) -> None:
    monkeypatch.setattr(labcore, "load", lambda *a, **k: 1 / 0, raising=False)
    assert isinstance(runner.invoke(app, ["generate", "Hello"]).exception, ZeroDivisionError)


def test_interrupt_ends_quietly(monkeypatch: pytest.MonkeyPatch, engine: Any) -> None:
    def interrupted(*_: Any, **__: Any) -> Iterator[Step]:
        yield Step(0, "prefill", 0, "Once", 0.1)
        raise KeyboardInterrupt

    monkeypatch.setattr(labcore, "stream", interrupted, raising=False)
    result = runner.invoke(app, ["generate", "Hello"])
    assert result.exit_code == 130
    assert "Traceback" not in result.output


def test_random_weights_are_said(monkeypatch: pytest.MonkeyPatch, engine: Any) -> None:
    model = SimpleNamespace(random_weights=True, name="shape:tiny")
    monkeypatch.setattr(labcore, "load", lambda *a, **k: model, raising=False)
    assert "shape:tiny has random weights" in runner.invoke(app, ["generate", "Hello"]).stderr


def test_unknown_model_in_a_real_process() -> None:
    words = [sys.executable, "-m", "labcore.cli", "generate", "Hello", "--model", "./no-such-folder"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_missing_extra_is_named(tmp_path: Path) -> None:
    """Without typer the installed script still answers, with the extra to install."""
    code = "import sys; sys.modules['typer'] = None; import labcore.cli"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'labcore[lab]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_ends_with_1_when_something_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    healthy = [doctor.Finding("python", "3.12"), doctor.Finding("device", "cpu", "slow", "no GPU")]
    monkeypatch.setattr(doctor, "examine", lambda device: healthy)
    assert runner.invoke(app, ["doctor"]).exit_code == 0
    monkeypatch.setattr(
        doctor, "examine", lambda device: [*healthy, doctor.Finding("disk", "full", "problem")]
    )
    result = runner.invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "1 to mend" in result.output


def test_doctor_refuses_a_device_that_is_not_here() -> None:
    result = runner.invoke(app, ["doctor", "--device", "abacus"])
    assert result.exit_code == 2
    assert "abacus" in result.stderr


@pytest.mark.parametrize("words", [["lessons", "run"], ["lessons", "run", "01", "--all"]])
def test_lessons_run_needs_names_or_all(words: list[str]) -> None:
    result = runner.invoke(app, words)
    assert result.exit_code == 2
    assert "--all" in result.stderr


def test_open_becomes_jupyterlab_on_the_trusted_lesson(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("index.ipynb", "01_introduction.ipynb"):
        (tmp_path / name).touch()
    started: list[Any] = []
    monkeypatch.setattr("labcore.lab.runner.notebooks_dir", lambda: tmp_path)
    monkeypatch.setattr(
        "labcore.lab.jupyter.trust", lambda paths: started.append([path.name for path in paths])
    )
    monkeypatch.setattr("os.execve", lambda program, words, environment: started.append((words, environment)))
    runner.invoke(app, ["lessons", "open", "1", "--no-browser", "--port", "8891"], catch_exceptions=False)
    trusted, (words, environment) = started
    assert trusted == ["index.ipynb", "01_introduction.ipynb"]
    assert {"--no-browser", "--port=8891", str(tmp_path / "01_introduction.ipynb")} <= set(words)
    assert environment["JUPYTER_PREFER_ENV_PATH"] == "1"
    assert (Path(environment["JUPYTER_CONFIG_PATH"]) / "jupyter_lab_config.json").is_file()


def test_open_without_a_name_opens_the_front_page(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("labcore.lab.jupyter.trust", lambda paths: None)
    monkeypatch.setattr("os.execve", lambda program, words, environment: started.append(words))
    runner.invoke(app, ["lessons", "open"], catch_exceptions=False)
    assert started[0][4].endswith("notebooks/index.ipynb")


def test_list_says_minutes_and_progress() -> None:
    said = runner.invoke(app, ["lessons", "list"]).output.splitlines()
    assert len(said) == 8
    assert said[1].startswith("02  The two-step process")
    assert said[1].endswith("(40 min, not begun)")


def test_plan_says_what_fits_and_what_does_not() -> None:
    result = runner.invoke(app, ["plan", "llama-2-7b", "--gpu", "a10", "--batch", "2", "--context", "4096"])
    assert result.exit_code == 0, result.output
    assert "Up to 4 sequences of 4,096 tokens would" in " ".join(result.output.split())
    result = runner.invoke(app, ["plan", "llama-2-7b", "--gpu", "a10", "--batch", "8", "--context", "4096"])
    assert result.exit_code == 2
    assert "8 sequences of 4,096 tokens need" in result.stderr
    assert "what fits: a cache of 8 bits" in result.stderr


def test_plan_lists_all_devices() -> None:
    result = runner.invoke(app, ["plan", "deepseek-v3", "--context", "32768"])
    assert result.exit_code == 0, result.output
    assert "NVIDIA A10" in result.output


def test_generate_quantizes_first_and_says_what_it_saved() -> None:
    done = runner.invoke(app, ["generate", "Tom has a", "--quantize", "int8", "--max-new-tokens", "3"])
    assert done.exit_code == 0
    assert "int8:granularity=channel: 13.3 MB became 3.3 MB, 8.06 bits a weight" in done.stderr
    wrong = runner.invoke(app, ["generate", "Tom", "--quantize", "int4:group=100"])
    assert wrong.exit_code == 2
    assert "Groups of 100 do not divide" in wrong.stderr
