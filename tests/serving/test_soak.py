"""The soak: what counts as good enough, and all of its phases with tiny numbers."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from labcore.cli import app
from labcore.errors import ConfigError
from labcore.serving.load import LoadTestError
from labcore.serving.soak import Phase, Soak, attacks, phases, run_soak
from labcore.serving.soak.crowd import PROMPTS, Stream
from labcore.serving.soak.phases import preemptions
from labcore.serving.soak.process import existing
from labcore.serving.soak.verdict import Spread, attacked, judged, spread, wait_fault
from tests.serving.fakes_http import FakeServer

pytestmark = pytest.mark.timeout(120)
KNOWN = ("a b c", "d e f")
TINY = Soak(
    clients=4, seconds=0.2, beside=2, attack_s=0.3, stopped_s=0.5, grace_s=2, blocks=16, tokens=5, idle=20
)
RIGHT = Stream(0, 0.0, [1.0, 1.5, 3.5], "a b c")


@pytest.mark.parametrize(
    ("calm", "most", "good"),
    [(0.01, 0.3, True), (0.01, 0.31, False), (1.0, 1.5, True), (1.0, 1.51, False), (None, 1.0, False)],
)
def test_a_wait_is_good_below_300_ms_or_one_and_a_half_times_the_calm_one(
    calm: float | None, most: float, good: bool
) -> None:
    assert (wait_fault("gap", calm, most) == "") is good


def test_a_load_counts_what_came_and_what_was_wrong() -> None:
    left = Stream(1, 0.0, [0.5], "d e", left=True)
    phase = judged("load", [RIGHT, left], KNOWN)
    assert (phase.streams, phase.left, phase.wrong, phase.faults) == (2, 1, 0, ())
    assert phase.gap == Spread(2.0, 2.0, 2.0)
    assert phase.ttft.most == 1.0
    wrong = [replace(RIGHT, text="a b"), replace(left, text="d x"), replace(RIGHT, error="disconnected")]
    phase = judged("load", wrong, KNOWN)
    assert phase.wrong == 2
    assert phase.errors == {"disconnected": 1}
    assert phase.faults == ("2 answers have wrong words", "1 answers failed")
    assert judged("load", [], KNOWN).faults == ("no answer came",)


def test_an_attack_is_compared_with_the_same_load_without_it() -> None:
    calm = judged("calm", [Stream(0, 0.0, [0.1, 0.2, 0.3], "a b c")], KNOWN)
    late = attacked(judged("late", [Stream(0, 0.0, [0.1, 0.2, 0.8], "a b c")], KNOWN), calm, answered=0)
    assert late.ratio == pytest.approx(6)
    assert late.faults == ("gap: 600 ms, 6.0 times that without",)
    silent = attacked(judged("silent", [Stream(0, 0.0, [9.0, 9.1, 9.2], "a b c")], KNOWN), calm, answered=3)
    assert silent.faults == (
        "first token: 9,000 ms, 90.0 times that without",
        "3 foreign requests were answered",
    )


def test_a_spread_of_nothing_is_nothing() -> None:
    assert spread([]) == Spread(None, None, None)
    assert spread([3.0, 1.0, 2.0]) == Spread(2.0, 3.0, 3.0)


@pytest.mark.parametrize(
    "url", ["http://example.org", "192.168.1.5:8000", "http://localhost.example.org", "http://["]
)
def test_only_this_machine_is_attacked(url: str) -> None:
    with pytest.raises(ConfigError, match="is not on this machine"):
        existing(url)


def test_a_server_s_place_is_read_from_its_address() -> None:
    assert existing("localhost:8000/v1").place == ("localhost", 8000)
    assert existing("http://[::1]:80").place == ("::1", 80)


def test_preemptions_are_read_from_the_metrics() -> None:
    text = '# TYPE x counter\nlabcore:num_preemptions_total{model_name="story"} 12.0\n'
    assert preemptions(text) == 12
    assert preemptions("") == 0


@pytest.fixture
def near_attacker(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a thread: a process would only take longer."""
    monkeypatch.setattr(phases, "_attacker", lambda: ThreadPoolExecutor(1))


@pytest.mark.usefixtures("near_attacker")
def test_every_attack_runs_and_a_foreign_host_that_is_answered_is_a_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[Phase] = []
    monkeypatch.setattr(attacks, "PROMPT_CHARACTERS", 1000)
    monkeypatch.setattr(attacks, "CHUNKS", 1000)
    with FakeServer() as server:
        run = run_soak(replace(TINY, attack_s=0.1), url=server.url, on_phase=told.append)
    assert [phase.name for phase in run if not phase.name.startswith("calm")] == [
        "4 clients, half leaving",
        *TINY.names,
    ]
    assert run == told
    assert all(phase.wrong == 0 and not phase.errors for phase in run)
    assert run[0].left > 0
    assert "foreign requests were answered" in run[-1].faults[-1]
    assert {body["prompt"] for body in server.bodies} >= set(PROMPTS)


@pytest.mark.usefixtures("near_attacker")
def test_the_command_shows_and_writes_what_it_saw(tmp_path: Path) -> None:
    path = tmp_path / "soak.json"
    options = ["--seconds", "0.1", "--clients", "2", "--attack-seconds", "0.1", "--only", "foreign hosts"]
    with FakeServer() as server:
        done = CliRunner().invoke(app, ["soak", "--url", server.url, *options, "--out", str(path)])
    assert done.exit_code == 1, done.output
    assert "foreign requests were answered" in done.output
    rows = json.loads(path.read_text(encoding="utf-8"))["result"]["phases"]
    assert [row["passed"] for row in rows] == [True, True, False]


@pytest.mark.parametrize(
    "options", [["--url", "http://example.org"], ["--only", "kindness"], ["--clients", "0"]]
)
def test_options_that_mean_nothing_end_with_code_2(options: list[str]) -> None:
    assert CliRunner().invoke(app, ["soak", *options]).exit_code == 2


def test_a_server_that_gives_no_answer_cannot_be_soaked() -> None:
    with FakeServer(lambda _: "500") as server, pytest.raises(LoadTestError, match="out of cheese"):
        run_soak(TINY, url=server.url)


@pytest.mark.slow
def test_a_server_of_its_own_is_attacked_stopped_and_ended() -> None:
    run = run_soak(replace(TINY, names=("idle connections", "slow headers"), tokens=32))
    by_name = {phase.name: phase for phase in run}
    assert all(phase.wrong == 0 and not phase.errors for phase in run)
    assert by_name["SIGTERM under load"].notes["exit code"] == 0
    assert not by_name["SIGTERM under load"].faults
    assert not by_name["stopped for 0.5 s"].faults
    assert by_name["a pool of 16 blocks"].notes["preemptions"] > 0
