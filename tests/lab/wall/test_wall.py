"""The wall: entries, a folder and a collector that thirty use at once, and all that may go wrong there."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient
from typer.testing import CliRunner

from labcore.cli import app
from labcore.errors import LessonError
from labcore.lab import results as saved
from labcore.lab.results import Results
from labcore.lab.wall import share as sharing
from labcore.lab.wall.collector import create_app
from labcore.lab.wall.entry import Entry, Machine, Point, as_text, identity, make_entry
from labcore.lab.wall.figures import panels
from labcore.lab.wall.folder import MOST, Folder, NotYours
from labcore.lab.wall.names import shown_names
from labcore.lab.wall.page import page_html, plotly_script, wall_data

SECRET = "s" * 24


@pytest.fixture(autouse=True)
def results_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LABCORE_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "class").mkdir()
    return Folder(tmp_path / "class")


def entry(name: str = "", id: UUID | None = None, speed: float = 100.0, said: float = 3.0) -> Entry:
    machine = Machine(
        device="A CPU", kind="cpu", memory_bytes=8e9, threads=2, torch="2", labcore="0",
        matmul_flops={"float32": 2e11}, read_bandwidth=3e10,
    )  # fmt: skip
    points = [Point(id="02.1", unit="passes", said=said, measured=16.0, locked=True)]
    return Entry(
        id=id or uuid4(), name=name, shared_at="2026-01-01T00:00:00+00:00", machine=machine, points=points,
        tokens_per_s=speed, exercises_right={"02": 3},
    )  # fmt: skip


def run_a_lesson() -> None:
    """Save what lesson 1 would."""
    machine = {"name": "A CPU", "device": "cpu", "total_memory": 8e9, "threads": 2, "torch_version": "2"}
    results = Results("01", machine=machine | {"labcore_version": "0"})
    results.record("predictions", "01.1", question="Secret?", value=50.0, unit="tok/s", locked=True)
    results.record("predictions", "01.1", measured=100.0, off_by=2.0)
    results.record("exercises", "01.1", title="x", passed=True)
    results.save()


# What is shared


def test_an_entry_holds_numbers_and_nothing_that_says_who() -> None:
    run_a_lesson()
    made = make_entry()
    assert made.points == [Point(id="01.1", unit="tok/s", said=50.0, measured=100.0, locked=True)]
    assert (made.tokens_per_s, made.exercises_right, made.name) == (100.0, {"01": 1}, "")
    text = as_text(made)
    private = [socket.gethostname(), str(Path.home()), os.environ.get("USER", "root-user"), "Secret?"]
    assert [word for word in private if len(word) > 1 and word in text] == []
    assert make_entry().id == made.id  # sharing again replaces


def test_without_results_there_is_nothing_to_share() -> None:
    with pytest.raises(LessonError, match="nothing to share yet; run a lesson"):
        make_entry()


@pytest.mark.parametrize("name", ["x" * 41, "<script>", "a\nb\x00"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    run_a_lesson()
    with pytest.raises(LessonError, match="cannot be shared: name"):
        make_entry(name)


def test_a_damaged_identity_is_named(results_folder: Path) -> None:
    results_folder.mkdir()
    (results_folder / "wall.json").write_text("{", encoding="utf-8")
    with pytest.raises(LessonError, match=r"wall\.json is damaged .* delete it"):
        identity()


# The folder


@given(st.lists(st.tuples(st.sampled_from(["put", "remove"]), st.integers(0, 3), st.booleans()), max_size=20))
def test_any_history_of_sharing_keeps_the_last_of_each(steps: list[tuple[str, int, bool]]) -> None:
    import tempfile

    ids = [UUID(int=number + 1) for number in range(4)]
    with tempfile.TemporaryDirectory() as place:
        folder, model = Folder(Path(place)), dict[UUID, float]()
        for number, (step, who, is_owner) in enumerate(steps):
            secret = SECRET if is_owner else "t" * 24
            if ids[who] in model and not is_owner:
                with pytest.raises(NotYours):
                    folder.put(entry(id=ids[who]), secret)
            elif is_owner and step == "put":
                folder.put(entry(id=ids[who], speed=number + 1), SECRET)
                model[ids[who]] = number + 1
            elif is_owner:
                assert folder.remove(ids[who], SECRET) == (model.pop(ids[who], None) is not None)
        found, faults = folder.entries()
        assert {one.id: one.tokens_per_s for one in found} == model
        assert faults == []


def test_thirty_share_at_once(folder: Folder) -> None:
    entries = [entry(f"learner {number}") for number in range(30)]
    with ThreadPoolExecutor(30) as pool:
        list(pool.map(lambda one: folder.put(one, SECRET), entries))
    found, faults = folder.entries()
    assert {one.id for one in found} == {one.id for one in entries}
    assert faults == []
    assert all(path.suffix == ".json" for path in folder.path.iterdir())  # no half file stays


def test_junk_in_the_folder_is_named_and_hides_nobody(folder: Folder) -> None:
    good = entry("Ada")
    folder.put(good, SECRET)
    (folder.path / "junk.json").write_text("{half", encoding="utf-8")
    (folder.path / "list.json").write_text("[]", encoding="utf-8")
    shutil.copy(folder.path / f"{good.id}.json", folder.path / f"{uuid4()}.json")
    found, faults = folder.entries()
    assert [one.name for one in found] == ["Ada"]
    assert len(faults) == 3
    assert all("is no entry (" in fault for fault in faults)


def test_a_folder_that_is_not_there_or_refuses_is_one_sentence(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_a_lesson()
    with pytest.raises(LessonError, match="There is no class folder .*; check its name, or mount it"):
        sharing.share(make_entry(), str(tmp_path / "nowhere"))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(saved.os, "open", refuse)
    with pytest.raises(LessonError, match=r"could not be written \(Permission denied\)"):
        folder.put(entry(), SECRET)
    assert list(folder.path.iterdir()) == []


def test_two_learners_with_one_name_are_told_apart() -> None:
    given = ["Ada", "", "ada", "Ada (2)", "learner 2", "Ada"]
    shown = shown_names([entry(name) for name in given])
    assert shown == ["Ada", "learner 2", "ada (2)", "Ada (2) (2)", "learner 2 (2)", "Ada (3)"]
    assert len({name.casefold() for name in shown}) == len(given)


# The collector


@pytest.fixture
def client(folder: Folder) -> Iterator[TestClient]:
    with TestClient(create_app(folder, code="blue")) as made:
        yield made


def put(client: TestClient, one: Entry, secret: str = SECRET, code: str = "blue") -> httpx.Response:
    headers = {sharing.SECRET: secret, sharing.CODE: code}
    return client.put(f"/entries/{one.id}", content=one.model_dump_json(), headers=headers)


def test_put_replace_and_take_back(client: TestClient, folder: Folder) -> None:
    one = entry("Ada")
    assert put(client, one).status_code == 200
    first = client.get("/wall.json").json()
    assert first["headline"] == "1 learners"
    assert client.get(f"/wall.json?seen={first['version']}").status_code == 204
    assert put(client, one.model_copy(update={"tokens_per_s": 7.0})).status_code == 200
    assert folder.entries()[0][0].tokens_per_s == 7.0
    assert put(client, one, secret="u" * 24).status_code == 403
    headers = {sharing.SECRET: SECRET, sharing.CODE: "blue"}
    assert client.delete(f"/entries/{one.id}", headers=headers).status_code == 200
    assert client.delete(f"/entries/{one.id}", headers=headers).status_code == 404


def test_what_is_refused_is_refused_in_a_sentence(client: TestClient, folder: Folder) -> None:
    one = entry()
    headers = {sharing.SECRET: SECRET, sharing.CODE: "blue"}
    answers = [
        (401, put(client, one, code="red")),
        (400, put(client, one, secret="short")),
        (400, client.put("/entries/..%2Fetc", content=one.model_dump_json(), headers=headers)),
        (400, client.put(f"/entries/{uuid4()}", content=one.model_dump_json(), headers=headers)),
        (422, client.put(f"/entries/{one.id}", content="{junk", headers=headers)),
        (422, client.put(f"/entries/{one.id}", content=b"\xff\xfe", headers=headers)),
        (422, client.put(f"/entries/{one.id}", content='{"id": 1, "x": 1}', headers=headers)),
    ]
    for status, answer in answers:
        assert answer.status_code in ((status, 404) if "etc" in str(answer.url) else (status,)), answer.text
        if answer.status_code != 404:
            assert answer.json()["error"].endswith((".", "?")) or "share" in answer.json()["error"]
    assert list(folder.path.iterdir()) == []


def test_fifty_megabytes_are_refused_and_not_kept(client: TestClient, folder: Folder) -> None:
    sent = 0

    def body() -> Iterator[bytes]:  # without a Content-Length
        nonlocal sent
        for _ in range(50):
            sent += 1
            yield b"x" * 2**20

    headers = {sharing.SECRET: SECRET, sharing.CODE: "blue"}
    answer = client.put(f"/entries/{uuid4()}", content=body(), headers=headers)
    assert answer.status_code == 413
    assert list(folder.path.iterdir()) == []


def test_a_full_wall_says_so(folder: Folder, client: TestClient) -> None:
    for number in range(MOST):
        (folder.path / f"{number}.json").touch()
    answer = put(client, entry())
    assert answer.status_code == 409
    assert f"holds {MOST} entries" in answer.json()["error"]


def test_nobody_at_the_address_keeps_the_results(results_folder: Path) -> None:
    run_a_lesson()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        with pytest.raises(LessonError, match="No collector answers at .* Your results are kept here"):
            sharing.share(make_entry(), f"http://127.0.0.1:{probe.getsockname()[1]}")
    assert (results_folder / "lesson-01.json").exists()


# The figures and the page


def test_each_panel_has_its_finding_and_its_table() -> None:
    made = panels([entry("Ada"), entry("Bo", speed=50.0, said=160.0)])
    assert [len(panel.rows) for panel in made] == [1, 1, 1, 8]
    assert "2 predictions by 2 learners: 0 lie within 2×" in made[0].finding
    assert "The hardest was 02.1" in made[0].finding
    assert "the fastest is Ada's A CPU with 100" in made[2].finding
    assert made[3].finding == "2 learners have 6 exercises right."
    points = [trace for trace in made[0].figure.data if trace.mode == "markers"]
    assert [list(trace.y) for trace in points] == [[3.0, 160.0]]


def test_an_empty_wall_says_what_to_do() -> None:
    assert wall_data([], [])["headline"].startswith("Nobody has shared")
    assert "labcore wall share --to x" in page_html("labcore wall share --to x")
    assert all(panel.finding for panel in panels([]))


def test_the_page_as_a_file_asks_nobody() -> None:
    page = page_html("", wall_data([entry("Ada")], []))
    own = page.replace(plotly_script(), "")
    assert len(own) < len(page) - 1_000_000  # plotly is inside
    assert not re.search(r"(src|href)=\"(?!data:)", own)


# The command line


def test_share_shows_all_of_it_and_asks(folder: Folder) -> None:
    run_a_lesson()
    said = CliRunner().invoke(app, ["wall", "share", "--to", str(folder.path)], input="n\n")
    assert '"tokens_per_s": 100.0' in said.output
    assert list(folder.path.iterdir()) == []
    CliRunner().invoke(app, ["wall", "share", "--to", str(folder.path), "--name", "Ada", "--yes"])
    assert [one.name for one in folder.entries()[0]] == ["Ada"]
    page = folder.path.parent / "wall.html"
    CliRunner().invoke(app, ["wall", "show", str(folder.path), "--static", str(page)])
    assert "Ada" in page.read_text(encoding="utf-8")
    assert "Taken off" in CliRunner().invoke(app, ["wall", "withdraw", "--to", str(folder.path)]).output
    again = CliRunner().invoke(app, ["wall", "withdraw", "--to", str(folder.path)])
    assert "nothing of this machine" in again.output


@pytest.mark.slow
def test_a_real_collector_is_shared_with_and_ends_at_ctrl_c(tmp_path: Path) -> None:
    run_a_lesson()
    words = [sys.executable, "-m", "labcore.cli", "wall", "collect", "--port", "0", "--code", "blue"]
    words += ["--folder", str(tmp_path / "kept")]
    unbuffered = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=unbuffered)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        for _ in range(100):
            try:
                httpx.get(address, trust_env=False)
                break
            except httpx.ConnectError:
                time.sleep(0.1)
        with pytest.raises(LessonError, match=r"refused \(401\): The class code is missing or wrong"):
            sharing.share(make_entry(), address)
        sharing.share(make_entry("Ada"), address, "blue")
        assert sharing.withdraw(address, "blue")
        assert not sharing.withdraw(address, "blue")
    finally:
        process.send_signal(2)
        assert process.wait(timeout=20) in (0, -2, 130)
