"""The collector: thirty at once, and everything that it refuses, in one sentence with the right status."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from starlette.testclient import TestClient

from labcore.errors import LessonError
from labcore.lab.wall import collector, drawing
from labcore.lab.wall import folder as wall_folder
from labcore.lab.wall import share as sharing
from labcore.lab.wall.clients import BURST, Clients
from labcore.lab.wall.collector import create_app, make_server
from labcore.lab.wall.entry import Entry
from labcore.lab.wall.folder import MOST, Folder
from labcore.lab.wall.membership import Membership, join
from labcore.serving.server import bind
from tests.lab.wall.made import SECRET, entry, run_a_lesson

HEADERS = {sharing.SECRET: SECRET, sharing.CODE: "blue"}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "class").mkdir()
    return Folder(tmp_path / "class")


@pytest.fixture
def client(folder: Folder) -> Iterator[TestClient]:
    with TestClient(create_app(folder, code="blue"), base_url="http://127.0.0.1") as made:
        yield made


@pytest.fixture
def address(folder: Folder) -> Iterator[str]:
    """A collector behind a real socket, on a thread."""
    with bind("127.0.0.1", 0) as sock:
        server = make_server(create_app(folder, code="grün"))
        thread = threading.Thread(target=server.run, args=([sock],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        server.should_exit = True
        thread.join(timeout=10)


def put(client: TestClient, one: Entry, secret: str = SECRET, code: str = "blue") -> httpx.Response:
    headers = {sharing.SECRET: secret, sharing.CODE: code}
    return client.put(f"/entries/{one.id}", content=one.model_dump_json(), headers=headers)


def test_put_replace_and_take_back(client: TestClient, folder: Folder) -> None:
    one = entry("Ada")
    assert put(client, one).status_code == 200
    first = client.get("/wall.json").json()
    assert first["headline"] == "1 learner"
    assert client.get(f"/wall.json?seen={first['version']}").status_code == 204
    assert put(client, one.model_copy(update={"name": "Eve"})).status_code == 200
    assert [kept["name"] for kept in client.get("/entries").json()["entries"]] == ["Eve"]
    assert "secret" not in client.get("/entries").text
    assert put(client, one, secret="u" * 24).status_code == 403
    stranger = HEADERS | {sharing.SECRET: "u" * 24}
    assert client.delete(f"/entries/{one.id}", headers=stranger).status_code == 403
    assert client.delete(f"/entries/{one.id}", headers=HEADERS).status_code == 200
    gone = client.delete(f"/entries/{one.id}", headers=HEADERS)
    assert (gone.status_code, list(folder.path.iterdir())) == (404, [])


def test_what_is_refused_is_refused_in_a_sentence(client: TestClient, folder: Folder) -> None:
    one = entry()
    here, text = f"/entries/{one.id}", one.model_dump_json()
    outside = "/entries/" + "..%2F" * 4 + "etc%2Fpasswd"
    answers = [
        (401, put(client, one, code="red")),
        (401, client.delete(here, headers={sharing.SECRET: SECRET})),
        (400, put(client, one, secret="short")),
        (400, client.put("/entries/..%5Cx", content=text, headers=HEADERS)),
        (404, client.put(outside, content=text, headers=HEADERS)),
        (404, client.delete("/entries/../../x", headers=HEADERS)),
        (400, client.put(f"/entries/{uuid4()}", content=text, headers=HEADERS)),
        (405, client.post("/entries", content=text)),
    ]
    junk = [b"{junk", b"", b"\xff\xfe", b"[" * 50_000, b'{"id": 1, "x": 1}', b"null", b"1" * 10_000]
    lies = [text.replace('"said":3.0', f'"said":{value}') for value in ("-1", "NaN", "1e999", '"3x"', "null")]
    lies += [text.replace("A CPU", word) for word in ("<img src=x>", "x" * 41)]
    lies += [text.replace('"schema_version":1', '"schema_version":2'), text.replace('"locked"', '"pwned"')]
    assert text not in lies
    answers += [(422, client.put(here, content=body, headers=HEADERS)) for body in (*junk, *lies)]
    for status, answer in answers:
        assert answer.status_code == status, answer.text
        assert answer.json()["error"].endswith((".", "/.", "CODE.", "`."))
        assert "\n" not in answer.json()["error"]
    assert list(folder.path.iterdir()) == []


def test_an_entry_of_another_is_not_reached_by_another_spelling(client: TestClient, folder: Folder) -> None:
    one = entry("Ada")
    put(client, one)
    for spelling in (str(one.id).upper(), one.id.hex, f"{{{one.id}}}"):
        headers = HEADERS | {sharing.SECRET: "u" * 24}
        answer = client.put(f"/entries/{spelling}", content=one.model_dump_json(), headers=headers)
        assert answer.status_code == 403
    assert len(list(folder.path.iterdir())) == 1


def test_a_full_wall_and_a_lost_folder_say_so(folder: Folder, client: TestClient) -> None:
    for number in range(MOST):
        (folder.path / f"{number}.json").touch()
    answer = put(client, entry())
    assert answer.status_code == 409
    assert f"holds {MOST} entries" in answer.json()["error"]
    folder.path.rename(folder.path.with_name("gone"))
    for lost in (put(client, entry()), client.get("/wall.json"), client.get("/entries")):
        assert lost.status_code == 503
        assert "its terminal says why" in lost.json()["error"]
        assert str(folder.path) not in lost.text


def test_a_flood_from_one_address_leaves_room_for_the_others(folder: Folder) -> None:
    app = create_app(folder, clients=Clients(most_each=3))
    addresses = [("10.0.0.66", 5), ("10.0.0.7", 5)]
    mallory, ann = (TestClient(app, base_url="http://127.0.0.1", client=address) for address in addresses)
    kept = [entry() for _ in range(3)]
    assert [put(mallory, one).status_code for one in kept] == [200] * 3
    refused = put(mallory, entry())
    assert refused.status_code == 429
    assert "3 entries came from your address, the most that one may add" in refused.json()["error"]
    assert put(mallory, kept[0]).status_code == 200  # sharing again adds none
    assert put(ann, entry("Ann")).status_code == 200
    assert mallory.delete(f"/entries/{kept[0].id}", headers=HEADERS).status_code == 200
    assert put(mallory, entry()).status_code == 200


def test_changes_of_one_address_are_bounded_in_time(folder: Folder) -> None:
    now = 0.0
    app = create_app(folder, clients=Clients(clock=lambda: now))
    client = TestClient(app, base_url="http://127.0.0.1")
    one = entry()
    answers = [put(client, one).status_code for _ in range(BURST + 1)]
    assert answers == [200] * BURST + [429]
    assert put(client, one).headers["retry-after"] == "2"
    now = 2.0
    assert put(client, one).status_code == 200


def test_addresses_of_one_network_are_one_client() -> None:
    clients = Clients(most_each=1)
    clients.added(uuid4(), "2001:db8::1")
    assert clients.is_full("2001:db8::ffff")
    assert not clients.is_full("2001:db8:0:1::1")
    clients.added(uuid4(), "::ffff:10.0.0.1")
    assert clients.is_full("10.0.0.1")


def test_the_wall_answers_while_it_is_drawn(
    client: TestClient, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever looks meanwhile gets the last drawing; it is drawn once however many look."""
    monkeypatch.setattr(drawing, "PATIENCE_S", 0.05)
    put(client, entry("Ada"))
    first = client.get("/wall.json").json()
    started, go_on, drawn = threading.Event(), threading.Event(), []

    def slowly(entries: list[Entry], faults: list[str]) -> dict[str, object]:
        started.set()
        drawn.append(len(entries))
        assert go_on.wait(20)
        return {"headline": str(len(entries))}

    monkeypatch.setattr(collector, "wall_data", slowly)
    put(client, entry("Eve"))
    try:
        with ThreadPoolExecutor(8) as pool:
            shown = list(pool.map(lambda _: client.get("/wall.json"), range(8)))
        assert started.is_set()
        assert [one.json()["version"] for one in shown] == [first["version"]] * 8
        assert client.get(f"/wall.json?seen={first['version']}").status_code == 204
        assert put(client, entry("Joe")).status_code == 200
        assert len(client.get("/entries").json()["entries"]) == 3
        assert drawn == [2]
    finally:
        go_on.set()
    headlines = {client.get("/wall.json").json()["headline"] for _ in range(3)}
    assert headlines <= {"2", "3"}
    assert client.get("/wall.json").json()["headline"] == "3"


def test_an_entry_is_read_once_until_it_changes(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    one, read = entry("Ada"), []
    folder.put(one, SECRET)
    real = wall_folder._read
    monkeypatch.setattr(wall_folder, "_read", lambda path: (read.append(path.name), real(path))[1])
    assert [folder.entries()[0][0].name for _ in range(3)] == ["Ada"] * 3
    assert len(read) == 1
    folder.put(one.model_copy(update={"name": "Eve"}), SECRET)
    assert folder.entries()[0][0].name == "Eve"


@pytest.mark.parametrize("header", [{"Host": "evil.com"}, {"Host": "127.0.0.1", "Origin": "http://evil.com"}])
def test_websites_cannot_read_or_change_the_wall(client: TestClient, folder: Folder, header: dict) -> None:
    one = entry()
    text = one.model_dump_json()
    answers = [
        client.put(f"/entries/{one.id}", content=text, headers=HEADERS | header),
        client.get("/wall.json", headers=header),
        client.get("/entries", headers=header),
    ]
    assert {answer.status_code for answer in answers} <= {403, 421}
    assert all("evil.com" in answer.json()["error"] for answer in answers)
    assert list(folder.path.iterdir()) == []


def flood(address: str, head: str, part: bytes, times: int) -> tuple[str, int]:
    """Send a request as it stands; the answer ("" if the sender was cut off), and how many parts went out."""
    host, port = address.removeprefix("http://").split(":")
    sent = 0
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        try:
            connection.sendall(head.encode())
            for sent in range(1, times + 1):  # noqa: B007 - the last one counts
                connection.sendall(part)
        except OSError:
            sent -= 1
        try:
            return connection.recv(65536).decode(), sent
        except ConnectionResetError:
            return "", sent


@pytest.mark.parametrize(
    ("length", "status"),
    [("Transfer-Encoding: chunked", 413), ("Content-Length: 52428800", 413), ("Content-Length: 5", 400)],
)
def test_fifty_megabytes_are_not_read(address: str, folder: Folder, length: str, status: int) -> None:
    """Whether the length is not told, told, or a lie: what comes behind the announced bytes is no request."""
    part = b"x" * 2**20
    part = b"100000\r\n" + part + b"\r\n" if "chunked" in length else part
    head = f"PUT /entries/{uuid4()} HTTP/1.1\r\nHost: 127.0.0.1\r\n{sharing.SECRET}: {SECRET}\r\n"
    answer, sent = flood(address, f"{head}{sharing.CODE}: grün\r\n{length}\r\n\r\n", part, times=50)
    assert answer.startswith(f"HTTP/1.1 {status}") or not answer
    assert sent < 50  # it hung up
    assert list(folder.path.iterdir()) == []
    assert httpx.get(f"{address}/entries", trust_env=False).status_code == 200  # and lives


def test_an_announced_length_that_never_comes_holds_nobody_up(address: str) -> None:
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as idle:
        idle.sendall(
            f"PUT /entries/{uuid4()} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 900\r\n\r\nx".encode()
        )
        assert httpx.get(f"{address}/wall.json", trust_env=False).status_code == 200


def test_thirty_share_at_once_and_take_it_back(address: str, folder: Folder) -> None:
    members = [
        Membership(to=address, code="grün", id=uuid4(), secret=f"{number:024}") for number in range(30)
    ]

    def learner(me: Membership) -> None:
        sharing._deliver(entry("first", me.id), me)
        sharing._deliver(entry("again", me.id), me)

    with ThreadPoolExecutor(30) as pool:
        list(pool.map(learner, members))
        found, faults = sharing.read(address)
        assert {one.id for one in found} == {me.id for me in members}
        assert ({one.name for one in found}, faults) == ({"again"}, [])
        assert all(pool.map(lambda me: sharing._ask("DELETE", me), members))
    assert list(folder.path.iterdir()) == []


FUZZED = create_app(Folder(Path("no-such-folder")), code="blue", allowed_hosts=["*"])
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", FUZZED)


@SCHEMA.parametrize()
@settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)  # fmt: skip
def test_nothing_that_is_sent_breaks_it(
    case: schemathesis.Case, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.getbasetemp())
    Path("no-such-folder").mkdir(exist_ok=True)
    case.headers.update(HEADERS)
    case.validate_response(case.call(), checks=[not_a_server_error])


@pytest.mark.slow
def test_a_real_collector_is_shared_with_and_ends_at_ctrl_c(tmp_path: Path) -> None:
    run_a_lesson()
    words = [sys.executable, "-m", "labcore.cli", "wall", "collect", "--port", "0", "--class-code", "blue"]
    words += ["--folder", str(tmp_path / "kept")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(words, env=dict(os.environ), **pipes)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        assert process.stdout.readline() == f"To share: labcore wall share --to {address} --code blue\n"
        me = join(address)
        with pytest.raises(LessonError, match=r"refuses \(401\): The class code is missing or wrong"):
            sharing.share(entry(id=me.id), me)
        sharing.share(entry("Ada", me.id), join(address, "blue"))
        assert [one.name for one in sharing.read(address)[0]] == ["Ada"]
        assert sharing.withdraw(address)  # the code is remembered
        assert not sharing.withdraw(address)
    finally:
        process.send_signal(2)
        said = process.communicate(timeout=20)[1]
    assert process.returncode in (0, 130)
    assert "Traceback" not in said
