"""`labcore bench speculate`: its counts, and what it says; never its timings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import labcore
from labcore.bench.cli import app
from labcore.bench.speculate import bench_speculate, drafts_of
from labcore.errors import ConfigError
from tests.bench.made_up import SMALL, model_of

SIZES = {"prompts": 2, "new_tokens": 12, "together": 3, "repeats": 2}


def test_a_model_that_guesses_its_own_tokens_is_always_right() -> None:
    """Twelve tokens: one of the prefill, then steps of up to four guesses and one token more."""
    model = model_of(SMALL)
    found = bench_speculate(model, [model_of(SMALL)], guesses=(1, 4), **SIZES)
    rows = {(row["work"], row["engine"], row["guesses"]): row for row in found["rows"]}
    assert len(rows) == len(found["rows"]) == 4 + 3 + 3
    for (work, engine, guesses), row in rows.items():
        assert row["same"] is True
        assert row["tokens_per_s"] == pytest.approx((36 if "at once" in work else 24) / row["seconds"])
        if engine == "labcore":
            assert (guesses, row["accepted"], row["tokens_per_step"], row["faster"]) == (0, None, 1.0, 1.0)
        if engine == "labcore tiny" and "temperature" not in work:
            assert row["accepted"] == 1.0
            assert row["tokens_per_step"] == {1: 12 / 7, 4: 12 / 4}[guesses]


def test_drafts_come_plain_and_small() -> None:
    story = labcore.load("story")
    plain, small = drafts_of(story, "story-draft", "int8")
    assert (plain.name, small.name) == ("story-draft", "story-draft int8")
    assert small.weight_bytes < plain.weight_bytes / 2
    assert drafts_of(story, None, "int8") == []
    assert len(drafts_of(story, "story-draft", None)) == 1


def test_what_cannot_be_measured_is_refused() -> None:
    for guesses in ((), (2, 0)):
        with pytest.raises(ConfigError, match="cannot be guessed"):
            bench_speculate(model_of(SMALL), guesses=guesses)
    with pytest.raises(ConfigError, match="same vocabulary"):
        bench_speculate(model_of(SMALL), [labcore.load("story-draft")])


def test_the_command_writes_what_it_shows(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    words = ["speculate", "--guesses", "3", "--new-tokens", "8", "--together", "2", "--repeats", "1"]
    done = CliRunner().invoke(app, [*words, "--out", str(out)])
    assert done.exit_code == 0, done.output
    data = json.loads(out.read_text())
    assert data["benchmark"] == "speculate"
    assert data["result"]["drafts"] == ["story-draft", "story-draft int8"]
    assert {row["guesses"] for row in data["result"]["rows"]} == {0, 3, 4}
    assert "2 at once" in done.output
