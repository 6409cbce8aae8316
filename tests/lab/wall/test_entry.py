"""What is shared, and who shares it."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from uuid import uuid4

import pytest
from pydantic import ValidationError

from labcore.errors import LessonError
from labcore.lab import introduction
from labcore.lab import session as sessions
from labcore.lab.live import BatchPoint, StreamMetrics
from labcore.lab.predictions import Prediction
from labcore.lab.results import Results, folder
from labcore.lab.wall import membership
from labcore.lab.wall.entry import Done, Entry, Point, Speed, as_text, make_entry
from tests.lab.wall.made import entry, run_a_lesson


def test_an_entry_holds_numbers_and_nothing_that_says_who() -> None:
    run_a_lesson()
    me = membership.join("http://class:8400")
    made = make_entry(me.id)
    assert made.points == [Point(id="01.1", unit="tok/s", said=50.0, measured=100.0, locked=True)]
    assert made.speeds == [Speed(model="story", dtype="float32", batch=1, tokens_per_s=100.0)]
    assert (made.lessons["01"].right, made.name) == (1, "")
    text = as_text(made)
    private = [
        socket.gethostname(),
        str(Path.home()),
        os.environ.get("USER", "root-user"),
        "Secret?",
        "my-own",
    ]
    private += [me.secret, str(folder())]
    assert [word for word in private if len(word) > 1 and word in text] == []


def test_only_these_things_are_ever_shared() -> None:
    """A new field must be thought about: does it tell who somebody is?"""
    fields = {"schema_version", "id", "name", "shared_at", "machine", "points", "speeds", "lessons"}
    machine = {
        "device",
        "kind",
        "memory_bytes",
        "threads",
        "torch",
        "labcore",
        "matmul_flops",
        "read_bandwidth",
    }
    data = entry().model_dump()
    assert set(data) == fields
    assert set(data["machine"]) == machine
    assert set(data["points"][0]) == {"id", "unit", "said", "measured", "locked"}
    assert set(data["speeds"][0]) == {"model", "dtype", "batch", "tokens_per_s"}
    assert data["lessons"] == {"02": Done(right=3, of=4).model_dump()}


def test_roofs_of_this_machine_are_not_told_of_another() -> None:
    run_a_lesson(saved_name="Somebody else's CPU")
    assert make_entry(uuid4()).machine.matmul_flops == {}


def test_without_results_there_is_nothing_to_share() -> None:
    with pytest.raises(LessonError, match="nothing to share yet; run a lesson"):
        make_entry(uuid4())


def test_a_damaged_lesson_hides_no_other(tmp_path: Path) -> None:
    run_a_lesson("01")
    (folder() / "lesson-02.json").write_text("{", encoding="utf-8")
    assert set(make_entry(uuid4()).lessons) == {"01"}


@pytest.mark.parametrize("name", ["x" * 41, "<script>", "a\nb\x00", "a\u202eb"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    run_a_lesson()
    with pytest.raises(LessonError, match="cannot be shared .name: "):
        make_entry(uuid4(), name)


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), 1e18, "1 or 2"])
def test_numbers_without_a_place_on_the_wall_are_refused(value: object) -> None:
    data = json.loads(entry().model_dump_json())
    data["points"][0]["said"] = value
    with pytest.raises(ValidationError):
        Entry.model_validate(data)


def test_the_first_lesson_records_decode_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    import labcore

    model = labcore.load("story", device="cpu", dtype="float32")
    session = sessions.Session(model, "quick", "learner", 0, "01", Results("01"))
    monkeypatch.setattr(sessions, "_current", session)
    points = [
        BatchPoint(batch, StreamMetrics(11 * batch, 0.5, 0.1, 1.5, 11 * batch / 1.5), 0.0)
        for batch in (1, 2, 8)
    ]
    introduction.show_batches(points, Prediction("01.3", "?", value=1.0))
    rates = {name: value["value"] for name, value in Results.open("01").measurements.items()}
    assert rates == {"decode tok/s, batch 1": 10.0, "decode tok/s, batch 8": 80.0}
    assert {value["dtype"] for value in Results.open("01").measurements.values()} == {"float32"}


# Who shares


def test_sharing_again_is_the_same_learner_and_each_class_knows_another() -> None:
    first = membership.join("http://a:8400/")
    membership.keep(first)
    assert membership.join("http://a:8400").id == first.id
    assert membership.join("http://b:8400").id != first.id
    assert oct(membership.path().stat().st_mode)[-3:] == "600"  # it holds the secret


def test_a_collector_that_moved_is_the_same_class_by_its_code() -> None:
    monday = membership.join("http://10.0.0.5:8400", "blue")
    membership.keep(monday)
    tuesday = membership.join("http://10.0.0.9:8400", "blue")
    assert (tuesday.id, tuesday.secret) == (monday.id, monday.secret)
    assert membership.join("http://10.0.0.9:8400", "red").id != monday.id
    assert membership.join("http://10.0.0.5:8400").code == "blue"  # need not be typed again


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"classes": [{}]}', "\udcff", "[" * 100_000])
def test_a_damaged_membership_is_named(text: str) -> None:
    folder().mkdir(parents=True)
    membership.path().write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(LessonError, match=r"wall\.json is damaged .* delete it"):
        membership.join("http://a")
