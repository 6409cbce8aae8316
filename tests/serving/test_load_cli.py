"""`labcore load-test` as a user meets it."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from labcore.cli import LabGroup
from labcore.load_test_cli import load_test
from labcore.serving.workload import read_trace
from tests.serving.fakes_http import FakeServer

SMALL = ("--requests", "6", "--prompt", "uniform:5-9", "--output", "uniform:3-8", "--vocab", "50")


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    app = typer.Typer(cls=LabGroup)
    app.callback()(lambda: None)
    app.command("load-test")(load_test)
    return app


def ask(app: typer.Typer, url: str, *words: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(app, ["load-test", url, *words], env=env)


def failing_alternately(number: int) -> str:
    return "500" if number % 2 else "ok"


def test_one_load_as_table_json_and_page(app: typer.Typer, tmp_path: Path) -> None:
    out, html, trace = tmp_path / "a" / "r.json", tmp_path / "b" / "p.html", tmp_path / "t.jsonl"
    files = ("--out", str(out), "--html", str(html), "--save-trace", str(trace))
    with FakeServer(failing_alternately) as server:
        slo = ("--rate", "300", "--slo-ttft", "30", "--slo-tpot", "30", "--warmup", "0", "--seed", "3")
        result = ask(app, server.url, *SMALL, *slo, *files, env={"OPENAI_API_KEY": "topsecret"})
    assert result.exit_code == 0, result.output
    for words in (
        "3 of 6 requests",
        "TTFT",
        "TPOT",
        "ITL",
        "E2E",
        "50% kept TTFT ≤ 30.00 s and TPOT ≤ 30.00 s",
    ):
        assert words in result.output
    assert "3 × http 500: out of cheese" in result.output
    data = json.loads(out.read_text())
    assert "topsecret" not in out.read_text() + result.output
    assert (data["benchmark"], data["model"], data["loop"]) == ("load-test", "fake", "open")
    assert (data["settings"]["rate"], data["settings"]["seed"]) == (300, 3)
    assert (data["summary"]["requests"], data["summary"]["completed"]) == (6, 3)
    assert [record["id"] for record in data["records"]] == [f"r{index}" for index in range(6)]
    planned = {a.id: a.output_tokens for a in read_trace(trace)}
    for record in data["records"]:
        assert record["error"] or record["output_tokens"] == planned[record["id"]]
    page = html.read_text()
    assert page.count("Plotly.newPlot(") == 2
    assert "Requests in flight" in page


def test_one_seed_sends_one_workload_and_a_trace_repeats_its_lengths(
    app: typer.Typer, tmp_path: Path
) -> None:
    trace = tmp_path / "t.jsonl"
    sent: list[list[dict[str, Any]]] = []
    for words in (
        ("--save-trace", str(trace)),
        (),
        ("--seed", "1"),
        ("--trace", str(trace), "--requests", "6"),
    ):
        with FakeServer() as server:
            assert ask(app, server.url, *SMALL, "--users", "1", *words).exit_code == 0
        sent.append(server.bodies)
    assert len(sent[0]) == 2 + 6  # two to warm up
    assert sent[0] == sent[1]
    assert sent[0] != sent[2]
    # all at once, so a trace holds them in their order
    lengths = [[(len(body["prompt"]), body["max_tokens"]) for body in bodies[2:]] for bodies in sent]
    assert lengths[0] == lengths[3]


def test_a_sweep_asks_with_new_prompts_at_each_rate(app: typer.Typer, tmp_path: Path) -> None:
    out, html = tmp_path / "r.json", tmp_path / "p.html"
    with FakeServer(lambda number: "429" if number >= 14 else "ok") as server:
        words = ("--sweep", "200,400,800", "--slo-ttft", "30", "--out", str(out), "--html", str(html))
        result = ask(app, server.url, *SMALL, *words)
    assert result.exit_code == 0, result.output
    prompts = [tuple(body["prompt"]) for body in server.bodies]
    assert len(set(prompts)) == len(prompts)
    data = json.loads(out.read_text())
    points, runs = data["sweep"]["points"], data["runs"]
    assert [point["rate"] for point in points] == [200, 400, 800][: len(points)]
    assert len(runs) == len(points)
    assert len(prompts) == 2 + 6 * len(points)
    assert points[0]["attainment"] == 1.0
    assert html.read_text().count("Plotly.newPlot(") == 2
    lengths = [sorted(record["prompt_tokens"] for record in run["records"]) for run in runs]
    assert all(one == lengths[0] for one in lengths)


def test_a_trace_is_swept_too(app: typer.Typer, tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    lines = [{"at_s": at, "prompt_tokens": 5, "output_tokens": 4} for at in (0.0, 100.0, 900.0)]
    trace.write_text("\n".join(json.dumps(line) for line in lines))
    with FakeServer() as server:
        result = ask(app, server.url, "--trace", str(trace), "--sweep", "100", "--warmup", "0")
    assert result.exit_code == 0, result.output
    assert len(server.bodies) == 3


def test_nothing_answered_is_an_exit_code_of_its_own(app: typer.Typer) -> None:
    with FakeServer(lambda _: "500") as server:
        result = ask(app, server.url, *SMALL)
    assert result.exit_code == 1
    assert "6 × http 500" in result.output


def test_words_of_a_server_are_no_markup(app: typer.Typer) -> None:
    with FakeServer(refuses=("prompt",)) as server:
        result = ask(app, server.url, *SMALL)
    assert result.exit_code == 2
    assert "unknown argument prompt: [red]no[/red]" in result.output


@pytest.mark.parametrize(
    ("server", "words", "sentence"),
    [
        (FakeServer(models=()), (), "serves no model"),
        (FakeServer(key="right"), ("--api-key", "wrong"), "refuses the given key"),
        (FakeServer(), ("--model", "other"), "serves fake, not other"),
        (FakeServer(refuses=("ignore_eos",)), (), "--no-ignore-eos"),
        (FakeServer(), ("--rate", "1", "--users", "2"), "give one of them"),
        (FakeServer(), ("--sweep", "1,x"), "holds no rates"),
        (FakeServer(), ("--sweep", "0,1"), "holds no rates"),
        (FakeServer(), ("--rate", "-1"), "above 0"),
        (FakeServer(), ("--prompt", "zipf"), "no distribution of lengths"),
        (FakeServer(), ("--trace", "/no/such/file"), "cannot be read"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence(
    app: typer.Typer, server: FakeServer, words: tuple[str, ...], sentence: str
) -> None:
    with server:
        result = ask(app, server.url, *SMALL, *words)
    assert result.exit_code == 2
    assert sentence in result.output
    assert len(result.stderr.strip().splitlines()) == 1
    assert server.bodies == []


def test_an_unreachable_server_is_one_sentence(app: typer.Typer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    result = ask(app, f"http://127.0.0.1:{port}", *SMALL)
    assert result.exit_code == 2
    assert f"No server answers at http://127.0.0.1:{port}/v1/" in result.output
    assert len(result.stderr.strip().splitlines()) == 1


def test_no_ignore_eos_is_not_sent(app: typer.Typer) -> None:
    with FakeServer(refuses=("ignore_eos",)) as server:
        assert ask(app, server.url, *SMALL, "--no-ignore-eos").exit_code == 0
    assert len(server.bodies) == 8
