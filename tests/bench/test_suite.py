"""`labcore bench all`: its rows, what it compares and draws, what it survives; never its timings."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from labcore.bench import llama_cpp, llama_server, record, suite, suite_compare
from labcore.bench.cache import bench_cache
from labcore.bench.cli import app
from labcore.bench.generate import bench_generate
from labcore.bench.kernels import bench_kernels
from labcore.bench.predict import bench_predict
from labcore.bench.prefill import bench_prefill
from labcore.bench.quant import bench_quant
from labcore.bench.serving import bench_serving
from labcore.bench.speculate import bench_speculate
from labcore.bench.suite_plot import CEILING, suite_figure, write_page
from labcore.bench.suite_rows import Row, rows_of, with_ratios
from labcore.cli import app as labcore_app
from labcore.errors import LabError, OutOfMemory
from labcore.perf.machine import resolve_device
from tests.bench.made_up import SMALL, folder_of, without_measuring

BENCHMARKS: dict[str, Callable[..., Any]] = {
    "decode": bench_generate, "prefill": bench_prefill, "cache": bench_cache, "quant": bench_quant,
    "serving": bench_serving, "speculate": bench_speculate, "kernels": bench_kernels,
    "predict": bench_predict,
}  # fmt: skip


WIDE = SMALL.with_(intermediate_size=64)  # groups of 32 divide it


def rate(engine: str, value: float, what: str = "w", section: str = "decode", **more: Any) -> Row:
    return Row(section, what, engine, value, "tokens/s", True, **more)


def time(engine: str, value: float, what: str = "w", section: str = "kernels", **more: Any) -> Row:
    return Row(section, what, engine, value, "µs", False, **more)


# Rows


def test_ours_is_held_against_each_peer_on_the_same_work() -> None:
    rows = with_ratios([
        rate("labcore", 60.0), rate("labcore static", 20.0), rate("peer", 40.0),
        rate("peer", 40.0, what="alone"), time("reference", 90.0), time("labcore", 30.0),
    ])  # fmt: skip
    assert [row.ours_over for row in rows] == [None, None, 1.5, None, 3.0, None]


RESULTS: dict[str, dict[str, Any]] = {
    "decode": {
        "model": "shape:m", "ceiling_tokens_per_s": 80.0, "batch": 1,
        "rows": [
            {"engine": "labcore", "tokens_per_s": 60.0, "decode_tokens_per_s": 64.0},
            {"engine": "transformers", "tokens_per_s": 20.0, "decode_tokens_per_s": 32.0},
        ],
    },
    "prefill": {
        "model": "m",
        "rows": [{"engine": "labcore", "tokens": 128, "tokens_per_s": 60.0, "ceiling_tokens_per_s": 80.0}],
    },
    "cache": {
        "model": "m", "layers": 4,
        "rows": [{"cache": "int8", "batch": 8, "context": 512, "seconds": 0.02, "ceiling_share": 0.5}],
    },
    "quant": {
        "model": "m", "prompt_tokens": 64,
        "rows": [
            {"engine": name, "batch": batch, "decode_tokens_per_s": value, "ceiling_tokens_per_s": 100.0,
             "prefill_tokens_per_s": prefill}
            for name, batch, value, prefill in (
                ("labcore float32", 1, 40.0, 500.0), ("labcore float32", 8, 80.0, None),
                ("labcore int8:granularity=channel", 1, 60.0, 600.0),
                ("labcore int4:group=32", 1, 90.0, 700.0), ("transformers float32", 1, 20.0, 250.0),
                ("llama.cpp F32", 1, 50.0, 400.0), ("llama.cpp Q8_0", 1, 30.0, 300.0),
                ("llama.cpp Q4_0", 1, 45.0, 350.0),
            )
        ],
    },
    "serving": {
        "model": "m",
        "rows": [
            {"workload": "uniform", "engine": "labcore continuous", "tokens_per_s": 90.0, "roofline": 0.45},
            {"workload": "uniform", "engine": "llama.cpp server, 4 slots", "tokens_per_s": 60.0,
             "roofline": None},
        ],
    },
    "speculate": {
        "model": "story",
        "rows": [
            {"work": "one at a time", "engine": "labcore", "guesses": 0, "tokens_per_s": 50.0},
            {"work": "one at a time", "engine": "labcore look-up", "guesses": 4, "tokens_per_s": 65.0},
        ],
    },
    "kernels": {
        "model": "m",
        "rows": [{"kernel": "rms_norm", "shape": "1 × 8", "seconds": 2e-6, "reference_s": 8e-6,
                  "ceiling_s": 5e-7}],
    },
    "predict": {
        "model": "m",
        "rows": [{"phase": "decode", "batch": 1, "context": 64, "measured_s": 0.02, "expected_s": 0.015,
                  "compute_s": 0.004, "memory_s": 0.01}],
    },
}  # fmt: skip


def told(section: str) -> list[tuple[Any, ...]]:
    """(what, engine, value, ceiling, share, ours over it), numbers to six digits."""
    rows = rows_of(section, RESULTS[section])
    assert {row.section for row in rows} == {section}
    numbers = [(row.value, row.ceiling, row.ceiling_share, row.ours_over) for row in rows]
    rounded = [tuple(n if n is None else round(n, 6) for n in four) for four in numbers]
    return [(row.what, row.engine, *four) for row, four in zip(rows, rounded, strict=True)]


def test_rates_of_runs_and_prompts() -> None:
    assert told("decode") == [
        ("m, batch 1", "labcore", 60.0, 80.0, 0.75, None),
        ("m, batch 1", "transformers", 20.0, 80.0, 0.25, 3.0),
        ("m, batch 1, steps after the first", "labcore", 64.0, 80.0, 0.8, None),
        ("m, batch 1, steps after the first", "transformers", 32.0, 80.0, 0.4, 2.0),
    ]
    assert told("prefill") == [("m, prompt of 128", "labcore", 60.0, 80.0, 0.75, None)]


def test_rates_of_caches_and_servers() -> None:
    what = "m, 4 layers, batch 8, context 512"
    assert told("cache") == [(what, "labcore int8", 400.0, 800.0, 0.5, None)]
    assert told("serving") == [
        ("m, uniform requests", "labcore continuous", 90.0, 200.0, 0.45, None),
        ("m, uniform requests", "llama.cpp server, 4 slots", 60.0, None, None, 1.5),
    ]
    assert told("speculate") == [
        ("story, one at a time", "labcore", 50.0, None, None, None),
        ("story, one at a time", "labcore look-up × 4", 65.0, None, None, None),
    ]


def test_peers_are_held_against_ours_in_as_many_bits() -> None:
    ratios = {(what, engine): ratio for what, engine, *_, ratio in told("quant") if ratio}
    assert ratios == {
        ("m, full precision, decode, batch 1", "transformers float32"): 2.0,
        ("m, full precision, prompt of 64", "transformers float32"): 2.0,
        ("m, full precision, decode, batch 1", "llama.cpp F32"): 0.8,
        ("m, full precision, prompt of 64", "llama.cpp F32"): 1.25,
        ("m, 8 bits, decode, batch 1", "llama.cpp Q8_0"): 2.0,
        ("m, 8 bits, prompt of 64", "llama.cpp Q8_0"): 2.0,
        ("m, 4 bits, decode, batch 1", "llama.cpp Q4_0"): 2.0,
        ("m, 4 bits, prompt of 64", "llama.cpp Q4_0"): 2.0,
    }
    assert ("m, full precision, decode, batch 8", "labcore float32", 80.0, 100.0, 0.8, None) in told("quant")


def test_times_of_kernels_and_steps() -> None:
    assert told("kernels") == [
        ("rms_norm: 1 × 8", "labcore", 2.0, 0.5, 0.25, None),
        ("rms_norm: 1 × 8", "reference", 8.0, 0.5, 0.0625, 4.0),
    ]
    assert told("predict") == [
        ("m, decode, 1 × 64", "labcore", 20.0, 10.0, 0.5, None),
        ("m, decode, 1 × 64", "forecast", 15.0, 10.0, round(10 / 15, 6), 0.75),
    ]
    assert not any(row.higher_is_better for row in rows_of("kernels", RESULTS["kernels"]))


# Running


def test_every_section_has_a_benchmark_that_takes_its_quick_sizes() -> None:
    assert list(suite.SECTIONS) == list(suite.QUICK) == list(BENCHMARKS) == list(RESULTS)
    for name, sizes in suite.QUICK.items():
        assert set(sizes) <= set(inspect.signature(BENCHMARKS[name]).parameters), name
    assert suite.Settings().sizes("quant") == {}


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Sections that answer at once: made-up results, by section; an exception in its place is raised."""
    answers: dict[str, Any] = dict(RESULTS)

    def pretend(name: str) -> Callable[..., Any]:
        def run(settings: suite.Settings, peers: list[str], progress: Callable[[str], None]) -> Any:
            progress(f"with {', '.join(peers) or 'nobody'}")
            if isinstance(answers[name], BaseException):
                raise answers[name]
            return {"m": answers[name]}

        return run

    monkeypatch.setattr(suite, "SECTIONS", {name: pretend(name) for name in RESULTS})
    return answers


def test_a_section_that_fails_loses_nothing_of_the_others(pretended: dict[str, Any]) -> None:
    pretended |= {"cache": LabError("no room [at all]."), "quant": OutOfMemory("too large.")}
    said: list[str] = []
    found = suite.bench_all(suite.Settings(peers=("transformers",)), said.append)
    assert found.failed == {"cache": "no room [at all].", "quant": "too large."}
    assert list(found.sections) == ["decode", "prefill", "serving", "speculate", "kernels", "predict"]
    assert list(dict.fromkeys(row.section for row in found.rows)) == list(found.sections)
    assert list(found.seconds) == list(RESULTS)
    told = [text for text in said if "with" in text]
    assert told[:3] == ["decode: with transformers", "prefill: with transformers", "cache: with nobody"]
    assert said[1] == "decode: ended after 0 s, 1 of 8 sections"


def test_a_bug_is_not_kept_for_later(pretended: dict[str, Any]) -> None:
    pretended["prefill"] = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        suite.bench_all(suite.Settings(peers=()))


def test_only_what_was_asked_for_runs(pretended: dict[str, Any]) -> None:
    found = suite.bench_all(suite.Settings(only=("kernels", "decode"), peers=()))
    assert list(found.sections) == ["decode", "kernels"]
    with pytest.raises(LabError, match="no section 'speed' here; choose from decode, prefill"):
        suite.bench_all(suite.Settings(only=("decode", "speed")))
    with pytest.raises(LabError, match="no peer 'vllm' here; choose from transformers, transformers-static"):
        suite.bench_all(suite.Settings(peers=("vllm",)))


def fail(sentence: str) -> Callable[[], Any]:
    def look() -> Any:
        raise LabError(sentence)

    return look


def test_peers_that_are_not_here_are_left_out_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, pretended: dict[str, Any]
) -> None:
    cpu = resolve_device("cpu")
    monkeypatch.setattr(suite, "_package", lambda: "5.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(llama_cpp, "library", lambda: None)
    monkeypatch.setattr(llama_server, "binary", fail("no server."))
    assert suite.installed() == ("transformers", "llama.cpp")
    assert suite.peers_of("quant", suite.PEERS, cpu) == (["transformers", "llama.cpp"], [])
    missing = suite.LeftOut("serving", "llama.cpp", "no server.")
    assert suite.peers_of("serving", suite.PEERS, cpu) == (["transformers"], [missing])
    taken, (only_gpu,) = suite.peers_of("decode", suite.PEERS, cpu)
    assert (taken, only_gpu.engine) == (["transformers"], "transformers-static")
    assert "on a GPU only" in only_gpu.reason
    both = ["transformers", "transformers-static"]
    assert suite.peers_of("decode", suite.PEERS, torch.device("cuda")) == (both, [])
    assert suite.peers_of("cache", suite.PEERS, cpu) == ([], [])
    (on_gpu,) = suite.peers_of("prefill", ["llama.cpp"], torch.device("cuda"))[1]
    assert "on a CPU only" in on_gpu.reason
    assert suite.bench_all(suite.Settings()).left_out == [missing]
    monkeypatch.setattr(llama_cpp, "library", fail("no binding."))
    monkeypatch.setattr(suite, "_package", fail("no package."))
    assert suite.installed() == ()


# Comparing


def record_of(*rows: Row, quick: bool = False, **machine: Any) -> dict[str, Any]:
    about = {"device": "cpu", "name": "a processor", "threads": 2, "torch_version": "2.9"}
    return {
        "benchmark": "all",
        "machine": about | machine,
        "result": {"quick": quick, "rows": [row.to_dict() for row in rows]},
    }


def test_rows_are_joined_by_section_what_and_engine() -> None:
    old = record_of(rate("labcore", 40.0), rate("peer", 30.0), time("labcore", 80.0), time("gone", 1.0))
    new = record_of(time("labcore", 20.0), rate("labcore", 60.0), rate("labcore", 5.0, what="new work"))
    found = suite_compare.compare(old, new)
    assert [(one.new.section, one.old.value, one.new.value) for one in found.changes] == [
        ("kernels", 80.0, 20.0), ("decode", 40.0, 60.0),
    ]  # fmt: skip
    assert [(one.ratio, one.faster) for one in found.changes] == [(0.25, 4.0), (1.5, 1.5)]
    assert [row.engine for row in found.only_old] == ["peer", "gone"]
    assert [row.what for row in found.only_new] == ["new work"]
    assert found.warnings == []


def test_what_else_differs_is_said() -> None:
    old, new = record_of(torch_version="2.8", threads=2), record_of(name="another", quick=True)
    assert suite_compare.compare(old, new).warnings == [
        "The two differ in the device's name: a processor before, another now.",
        "The two differ in the torch version: 2.8 before, 2.9 now.",
        "The two differ in the --quick: False before, True now.",
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "holds no record of `labcore bench all`"),
        (json.dumps(record_of() | {"benchmark": "quant"}), "holds no record"),
        (json.dumps({"benchmark": "all", "result": {"rows": []}}), "holds no record"),
        (json.dumps({"benchmark": "all", "machine": {}, "result": {}}), "holds no record"),
        (json.dumps(record_of(rate("a", 1.0))).replace('"what"', '"which"'), "holds no record"),
        (json.dumps(record_of(rate("a", 0.0))), "holds no record"),
        (json.dumps(record_of(rate("a", 1.0))).replace("1.0", '"1.0"'), "holds no record"),
    ],
)
def test_what_is_no_record_is_refused(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    with pytest.raises(LabError, match="There is no file"):
        suite_compare.read(path)
    path.write_text(text)
    with pytest.raises(LabError, match=sentence):
        suite_compare.read(path)


def test_a_record_of_a_later_version_is_read(tmp_path: Path) -> None:
    path, row = tmp_path / "new.json", rate("labcore", 2.0, ceiling=4.0)
    data = record_of(row)
    data["result"]["rows"][0]["colour"] = "blue"
    path.write_text(json.dumps(data))
    assert suite_compare.rows_in(suite_compare.read(path)) == [row]


# Drawing


def test_the_figure_has_a_panel_a_section_and_a_point_a_row() -> None:
    rows = [row for name, result in RESULTS.items() for row in rows_of(name, result)]
    made = suite_figure(rows)
    assert [note.text.partition(":")[0] for note in made.layout.annotations] == list(RESULTS)
    assert made.layout.annotations[6].text == "kernels: µs, lower is better"
    points = [(x, y, t.name) for t in made.data if t.name != CEILING for x, y in zip(t.x, t.y, strict=True)]
    assert sorted(points) == sorted((row.value, row.what, row.engine) for row in rows)
    shown = [trace.name for trace in made.data if trace.showlegend]
    assert sorted(shown) == sorted({*(row.engine for row in rows), CEILING})
    ceilings = {y: x for t in made.data if t.name == CEILING for x, y in zip(t.x, t.y, strict=True)}
    assert ceilings == {row.what: row.ceiling for row in rows if row.ceiling}
    looks = {t.name: (t.marker.color, t.marker.symbol) for t in made.data}
    assert len(set(looks.values())) == len(looks)
    assert {axis.type for axis in made.select_xaxes()} == {"log"}


def test_an_axis_has_labels_however_near_the_values_are() -> None:
    axis = suite_figure([rate("labcore", 105.0, ceiling=190.0), rate("peer", 110.0)]).layout.xaxis
    low, high = (10**end for end in axis.range)
    assert low < 100 < 105 < 190 < 200 < high
    assert [mark for mark in axis.tickvals if low < mark < high] == [100, 200]


def test_more_engines_than_colours_stay_apart() -> None:
    made = suite_figure([rate(f"labcore {n}", 1.0 + n) for n in range(30)])
    assert len({(t.marker.color, t.marker.symbol) for t in made.data}) == 30


def test_a_page_needs_no_network(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "all.html"
    write_page([rate("labcore", 2.0)], path)
    text = path.read_text(encoding="utf-8")
    assert "labcore beside its peers" in text
    assert "cdn.plot.ly" not in text.replace("https://cdn.plot.ly/un/", "")  # of maps, which are not drawn
    assert len(text) > 1_000_000


def test_nothing_to_draw_and_nothing_to_draw_with(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LabError, match="nothing to draw"):
        suite_figure([])
    monkeypatch.setitem(sys.modules, "plotly.subplots", None)
    with pytest.raises(LabError, match="needs the package plotly, .* pip install plotly"):
        suite_figure([rate("labcore", 2.0)])


def test_plotly_is_imported_for_a_figure_only() -> None:
    code = "import labcore.bench.cli, labcore.bench.suite_plot, labcore.bench.suite, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"plotly", "transformers"} & {name.partition(".")[0] for name in done.stdout.split()}


# The command


@pytest.mark.slow
def test_the_command_runs_everything_and_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_measuring(monkeypatch, "generate", "prefill", "cache", "quant", "serving", "kernels")
    monkeypatch.setattr("labcore.perf.roof_measuring.working_set", lambda _: 4 << 20)
    model, out, page = folder_of(WIDE, tmp_path / "tiny"), tmp_path / "all.json", tmp_path / "all.html"
    words = ["all", "--quick", "--model", str(model), "--device", "cpu", "--against", "none"]
    done = CliRunner().invoke(app, [*words, "--out", str(out), "--plot", str(page)])
    assert done.exit_code == 0, done.output
    data = json.loads(out.read_text())
    result = data["result"]
    assert (data["benchmark"], result["quick"], result["failed"]) == ("all", True, {})
    assert list(result["sections"]) == list(suite.SECTIONS)
    assert result["sections"]["prefill"][str(model)]["rows"][0]["engine"] == "labcore"
    keys = [tuple(row[name] for name in ("section", "what", "engine")) for row in result["rows"]]
    assert len(set(keys)) == len(keys)
    assert page.exists()
    again = CliRunner().invoke(app, [*words, "--only", "prefill", "--compare", str(out)])
    assert again.exit_code == 0, again.output
    assert "In both runs: 1" in again.output
    assert "Only in the earlier run:" in again.output


def test_a_failure_is_shown_and_ends_with_code_1(pretended: dict[str, Any], tmp_path: Path) -> None:
    pretended["decode"] = LabError("no room [at all].")
    out = tmp_path / "all.json"
    words = ["all", "--against", "none", "--device", "cpu", "--out", str(out)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1
    assert "decode failed: no room [at all]." in done.output
    data = json.loads(out.read_text())
    assert data["result"]["failed"] == {"decode": "no room [at all]."}
    assert data["result"]["sections"]["quant"] == {"m": RESULTS["quant"]}


ALL = ["all", "--against", "none", "--device", "cpu"]


def test_where_stdout_is_a_file_every_step_is_a_line_with_its_time(pretended: dict[str, Any]) -> None:
    done = CliRunner().invoke(app, [*ALL, "--only", "decode"])
    lines = [line.split("s  ", 1) for line in done.output.splitlines()[:3]]
    assert [text for _, text in lines] == [
        "starting", "decode: with nobody", "decode: ended after 0 s, 1 of 1 sections",
    ]  # fmt: skip
    assert all(float(seconds) >= 0 for seconds, _ in lines)


@pytest.mark.parametrize("where", ["out", "no out"])
def test_ctrl_c_loses_no_section_that_has_ended(
    where: str, pretended: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended["quant"] = KeyboardInterrupt()
    monkeypatch.setenv("LABCORE_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "all.json"
    done = CliRunner().invoke(labcore_app, ["bench", *ALL, *(["--out", str(out)] if where == "out" else [])])
    assert done.exit_code == 130
    assert "Measured so far: decode, prefill, cache; " in done.output
    if where == "no out":
        (out,) = (tmp_path / "cache" / "results").iterdir()
    assert str(out) in done.output
    assert ("--resume goes on with it" in done.output) is (where == "out")
    result = suite_compare.read(out)["result"]
    assert (list(result["sections"]), result["complete"]) == (["decode", "prefill", "cache"], False)


def test_resume_measures_what_the_file_lacks(pretended: dict[str, Any], tmp_path: Path) -> None:
    pretended |= {"cache": LabError("no room."), "quant": KeyboardInterrupt()}
    out = tmp_path / "all.json"
    CliRunner().invoke(labcore_app, ["bench", *ALL, "--out", str(out)])
    before = suite_compare.read(out)
    pretended |= RESULTS | {"decode": AssertionError("it was measured again")}
    done = CliRunner().invoke(app, [*ALL, "--out", str(out), "--resume"])
    assert done.exit_code == 0, done.output
    assert "decode: measured before" in done.output
    after = suite_compare.read(out)
    assert set(after["result"]["sections"]) == set(RESULTS)
    assert (after["result"]["failed"], after["result"]["complete"]) == ({}, True)
    rows = suite_compare.rows_in(after)
    assert rows[: len(before["result"]["rows"])] == suite_compare.rows_in(before)
    assert len({row.key for row in rows}) == len(rows)


def test_what_cannot_be_resumed_is_said_before_anything_runs(
    pretended: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "all.json"
    words = [*ALL, "--only", "decode", "--out", str(out)]
    assert "--out" in str(CliRunner().invoke(app, [*ALL, "--resume"]).exception)
    first = CliRunner().invoke(app, [*words, "--resume"])
    assert f"There is no {out} yet: all sections are measured." in first.output
    pretended["prefill"] = AssertionError("something was measured")
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    sentence = str(CliRunner().invoke(app, [*ALL, "--quick", "--out", str(out), "--resume"]).exception)
    assert f"threads: {threads} then, {threads + 1} now; quick: False then, True now" in sentence
    assert "Leave --resume out" in sentence
    out.write_text(json.dumps(record_of(rate("a", 1.0))))
    sentence = str(CliRunner().invoke(app, [*words, "--resume"]).exception)
    assert "does not state its settings" in sentence


def test_a_disk_that_refuses_a_section_ends_nothing(
    pretended: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write = tmp_path / "all.json", record.write

    def full(path: Path, data: dict[str, Any]) -> None:
        if path == out:
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setenv("LABCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(record, "write", full)
    done = CliRunner().invoke(app, [*ALL, "--out", str(out)])
    (place,) = (tmp_path / "cache" / "results").iterdir()
    assert str(done.exception) == (
        f"{out} could not be written (No space left on device); the result was written to {place}."
    )
    assert list(suite_compare.read(place)["result"]["sections"]) == list(RESULTS)


def test_what_cannot_be_compared_or_drawn_is_said_before_anything_runs(
    pretended: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended["decode"] = AssertionError("something was measured")
    words = ["all", "--device", "cpu", "--compare", str(tmp_path / "absent.json")]
    assert "There is no file" in str(CliRunner().invoke(app, words).exception)
    monkeypatch.setitem(sys.modules, "plotly.subplots", None)
    words = ["all", "--device", "cpu", "--plot", str(tmp_path / "all.html")]
    assert "needs the package plotly" in str(CliRunner().invoke(app, words).exception)
