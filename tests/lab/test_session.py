"""A lesson's session: what it resolves, refuses, shows and writes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from labcore import lab, model
from labcore.errors import LessonError, PromptError
from labcore.lab import display, results, tables, theme, units
from labcore.lab import session as sessions
from labcore.lab.display import PLOTLY_MIME, figure_bundle, html_bundle, title_of
from labcore.lab.page_labels import labelling
from labcore.lab.results import Results
from labcore.lab.session import Session
from tests.lab.conftest import tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tiny_model()
    return model.save_checkpoint(made, made.config, tmp_path / "tiny", "float32")


def test_start_resolves_and_shows_the_machine(
    folder: Path, results_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sessions, "_current", None)
    monkeypatch.setattr(sessions, "_known_roofs", lambda device: None)
    made = lab.start(str(folder), device="cpu", lesson="01")
    assert lab.current() is made
    assert (made.scale, made.mode, made.device.type) == ("quick", "learner", "cpu")
    assert made.pick(quick=1, full=2) == 1
    line = capsys.readouterr().out
    assert "roofs: not measured yet" in line
    assert f"torch {made.results.machine['torch_version']}" in line
    assert "float32" in line


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"mode": "teacher"}, "MODE is 'teacher'"), ({"scale": "huge"}, "SCALE is 'huge'")],
)
def test_wrong_parameters_are_refused_before_anything_loads(setting: dict[str, str], message: str) -> None:
    with pytest.raises(LessonError, match=message):
        lab.start("no such model", **setting)


def test_without_a_session_the_mend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_current", None)
    with pytest.raises(LessonError, match=r"run the cell with lab\.start"):
        lab.current()


def test_finish_writes_one_readable_file(session: Session, results_folder: Path) -> None:
    session.results.record("exercises", "01.1", passed=True)
    session.results.record("exercises", "01.2", passed=False)
    lab.predict("01.1", "How fast?", unit="tok/s", default=40)
    lab.score("01.1", measured=60.0)
    said = lab.finish()
    assert "1 predictions scored, 1 of them within 2×; 1 of 2 exercises right" in said
    data = json.loads((results_folder / "lesson-01.json").read_text(encoding="utf-8"))
    assert data["predictions"]["01.1"]["off_by"] == 1.5
    assert [path.name for path in results_folder.iterdir()] == [
        "lesson-01.json"
    ]  # no half-written file stays


def test_solution_runs_have_their_own_file(results_folder: Path) -> None:
    assert Results.open("01").save().name == "lesson-01.json"
    assert Results.open("01", "solution").save().name == "lesson-01-solution.json"


def test_a_failed_write_leaves_the_old_file(results_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Results.open("01")
    kept.record("measurements", "tpot_s", value=1)
    path = kept.save()
    before = path.read_text(encoding="utf-8")
    monkeypatch.setattr(results.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    kept.record("measurements", "tpot_s", value=2)
    with pytest.raises(LessonError, match=r"could not be written \(disk full\)"):
        kept.save()
    assert path.read_text(encoding="utf-8") == before
    assert len(list(results_folder.iterdir())) == 1


def test_a_damaged_file_says_how_to_begin_anew(results_folder: Path) -> None:
    results_folder.mkdir()
    (results_folder / "lesson-01.json").write_text("{half", encoding="utf-8")
    with pytest.raises(LessonError, match="is damaged .* `labcore lessons reset`"):
        Results.open("01")


def test_results_lie_in_the_checkout_or_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LABCORE_RESULTS", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert results.folder() == tmp_path / "home" / ".local" / "share" / "labcore"
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert results.folder() == tmp_path / "runs" / "results"


def test_expect_error_shows_the_sentence_and_nothing_else() -> None:
    def refuse() -> None:
        raise PromptError("The prompt is empty.")

    assert lab.expect_error(refuse) == "The prompt is empty."
    with pytest.raises(LessonError, match="expected to be refused"):
        lab.expect_error(lambda: None)
    with pytest.raises(ZeroDivisionError):
        lab.expect_error(lambda: 1 / 0)


def test_tables_align_and_escape() -> None:
    rows = [{"model": "<a>", "bytes": 524_288, "ms": 22.9, "fits": True}, {"model": "b", "bytes": None}]
    text = tables.as_text(rows)
    assert text.splitlines()[2].split() == ["<a>", "524,288", "22.9", "yes"]
    assert len({len(line) for line in text.splitlines()[:2]}) == 1
    html = tables.as_html(rows)
    assert "&lt;a&gt;" in html
    assert "<a>" not in html


def test_tables_name_their_rows_their_columns_and_what_they_belong_to() -> None:
    html = tables.as_html([{"": "work", "this step": 3, "prefill": 4}], "Step <3>")
    assert 'aria-label="Numbers of: Step &lt;3&gt;"' in html
    assert re.findall(r'<th scope="(col|row)"[^>]*>([^<]+)</th>', html) == [
        ("col", "this step"),
        ("col", "prefill"),
        ("row", "work"),
    ]
    assert 'aria-label="Numbers: bytes, ms"' in tables.as_html([{"": "work", "bytes": 3, "ms": 4}])


def test_a_figures_title_is_plain_words_and_its_data_is_sent_nowhere() -> None:
    figure = theme.figure("<b>int4</b> &amp; int8<br>side by side")
    assert title_of(figure).split() == ["int4", "&", "int8", "side", "by", "side"]
    assert title_of("<p>a drawing</p>") == ""
    settings = figure_bundle(figure)[PLOTLY_MIME]["config"]
    assert settings["showSendToCloud"] is False
    assert settings["plotlyServerURL"] == ""


def test_the_first_output_of_a_lesson_brings_the_script_that_names_controls() -> None:
    bundle = labelling(html_bundle("<p>Lesson</p>", "Lesson"))
    assert bundle["text/plain"] == "Lesson"
    parts = r"<p>Lesson</p><style>.*focus-visible.*</style><script>.*</script>$"
    assert re.match(parts, bundle["text/html"], re.DOTALL)
    assert bundle["text/html"].count("</script>") == 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"),
        (43.576, "43.6"),
        (1_234_567, "1,230,000"),
        (0.00234, "0.00234"),
        (9.999, "10"),
        (float("nan"), "nan"),
    ],
)
def test_three_significant_digits(value: float, expected: str) -> None:
    assert units.significant(value) == expected


def test_units_take_the_size_that_fits() -> None:
    assert units.si(2.039e12, "B/s") == "2.04 TB/s"
    assert units.si(12, "B") == "12 B"
    assert units.seconds(0.0229) == "22.9 ms"
    assert units.seconds(3e-6) == "3 µs"
    assert units.with_unit(4.13, "×") == "4.13×"


def test_a_redrawn_figure_gets_a_new_renderer(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, object]] = []
    monkeypatch.setattr(display, "get_ipython", lambda: object())
    monkeypatch.setattr(display, "display", lambda bundle, **_: sent.append(bundle))
    monkeypatch.setattr(display, "update_display", lambda bundle, **_: sent.append(bundle))
    region = display.Region()
    bundle = {display.PLOTLY_MIME: {"layout": {"height": 321}}, "text/plain": "figure"}
    region.show(bundle)
    region.show(bundle)
    assert [sorted(shown) for shown in sent] == [sorted(bundle), ["text/html", "text/plain"], sorted(bundle)]
    assert "height:321px" in str(sent[1]["text/html"])


@pytest.mark.parametrize("name", lab.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(lab, name) is not None
