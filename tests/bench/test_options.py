"""What the benchmark commands have in common: where a result goes, and what they say meanwhile."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from labcore import atomic, working
from labcore.bench import record
from labcore.bench.cli import app
from labcore.bench.options import keep, peers_named
from labcore.errors import LabError
from tests.bench.made_up import SMALL, folder_of

COMMANDS = [
    "all", "cache", "cache-quality", "crowd", "generate", "kernels", "parallel", "predict", "prefill",
    "quant", "quant-quality", "serving", "speculate",
]  # fmt: skip


def test_every_command_is_known() -> None:
    assert (
        sorted(command.name or command.callback.__name__ for command in app.registered_commands) == COMMANDS
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_measures_what_could_not_be_written(command: str, tmp_path: Path) -> None:
    """Refused before its model is looked for, too."""
    sentence = str(CliRunner().invoke(app, [command, "--out", str(tmp_path)]).exception)
    assert sentence == f"{tmp_path} is a folder or a device, and no file can take its place; name a file."


def test_where_a_file_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atomic.ensure_writable(tmp_path / "new" / "deep" / "out.json")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(LabError, match=r"file/out.json cannot be written .Not a directory.*another folder"):
        atomic.ensure_writable(tmp_path / "file" / "out.json")
    os.symlink("/dev/full", tmp_path / "device")
    with pytest.raises(LabError, match="a folder or a device"):
        atomic.ensure_writable(tmp_path / "device")
    with pytest.raises(LabError, match=r"MB are free on the disk of .* 1000000000000.0 MB should be"):
        atomic.ensure_writable(tmp_path / "out.json", room=10**18)

    def read_only(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(atomic.tempfile, "TemporaryFile", read_only)
    with pytest.raises(LabError, match=r"out.json cannot be written .Read-only file system: "):
        atomic.ensure_writable(tmp_path / "out.json")


def test_a_result_that_the_disk_refuses_is_kept_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(file=io.StringIO())
    monkeypatch.setenv("LABCORE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "file").touch()  # where a folder should be made
    with pytest.raises(LabError, match=r"out.json could not be written .* was written to") as caught:
        keep(console, tmp_path / "file" / "out.json", {"a": 1})
    (place,) = (tmp_path / "cache" / "results").iterdir()
    assert str(place) in str(caught.value)
    assert json.loads(place.read_text()) == {"a": 1}
    monkeypatch.setattr(record.machine, "cache_folder", lambda _: tmp_path / "file" / "cache")
    monkeypatch.setattr(record.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    assert str(tmp_path / "temporary") in record.kept_elsewhere(tmp_path / "out.json", {"a": 1})
    monkeypatch.setattr(record.tempfile, "gettempdir", lambda: str(tmp_path / "file" / "temporary"))
    assert "what was shown is all there is" in record.kept_elsewhere(tmp_path / "out.json", {"a": 1})
    assert not list(tmp_path.rglob("*.part"))


def test_nobody_is_a_peer() -> None:
    assert [peers_named(given) for given in (None, ["none"], ["a", "b"])] == [None, [], ["a", "b"]]
    with pytest.raises(LabError, match="means no peer, and transformers was named too"):
        peers_named(["transformers", "none"])


@pytest.mark.parametrize("command", ["generate", "prefill"])
def test_against_nobody_measures_ours_alone(command: str, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    words = [
        command,
        "--model",
        str(folder_of(SMALL, tmp_path / "tiny")),
        "--device",
        "cpu",
        "--repeats",
        "1",
    ]
    words += ["--new-tokens", "2"] if command == "generate" else ["--tokens", "4"]
    done = CliRunner().invoke(app, [*words, "--against", "none", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert [row["engine"] for row in json.loads(out.read_text())["result"]["rows"]] == ["labcore"]


def test_long_work_writes_lines_into_a_file_and_moves_on_a_terminal() -> None:
    file = io.StringIO()
    with working.working(Console(file=file), "loading") as say:
        assert file.getvalue() == "    0.0 s  loading\n"
        say("run 1 of 2: int4 [group=32]")
    assert file.getvalue().endswith(" s  run 1 of 2: int4 [group=32]\n")
    terminal = Console(file=io.StringIO(), force_terminal=True)
    working.lines(terminal)("nothing")
    assert terminal.file.getvalue() == ""  # type: ignore[attr-defined]
    with working.working(terminal, "loading [all]") as say:
        say("more [of it]")
