"""Who gets in: names, the class code at the first login, guesses, and where the hub listens."""

from __future__ import annotations

import asyncio
import dbm
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.deploy.shipped import HERE, load

class_door = load("class_door")
CODE, THEIRS, PASSWORD = "swordfish", "for-us-alone", "a password"


@pytest.fixture
def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The authenticator of a class with one instructor; its hashes are the quickest that bcrypt makes."""
    pytest.importorskip("firstuseauthenticator")
    bcrypt = pytest.importorskip("bcrypt")
    monkeypatch.setattr(bcrypt, "gensalt", partial(bcrypt.gensalt, 4))
    return load("class_login").ClassAuthenticator(
        dbm_path=str(tmp_path / "passwords"), class_code=CODE, instructor_code=THEIRS, allow_all=True,
        admin_users={"grace"},
    )  # fmt: skip


def _knock(
    door: Any, name: str, code: str = "", password: str = PASSWORD, address: str = "10.0.0.7"
) -> tuple[str | None, str]:
    """Who got in, and what the form says; as JupyterHub asks for it."""
    handler = SimpleNamespace(request=SimpleNamespace(remote_ip=address), custom_login_error="")
    data = {"username": name, "password": password, "class_code": code}
    entered = asyncio.run(door.get_authenticated_user(handler, data))
    return entered and entered["name"], handler.custom_login_error


def _names(tmp_path: Path) -> set[str]:
    with dbm.open(str(tmp_path / "passwords"), "c") as kept:
        return {key.decode() for key in list(kept.keys())}  # GNU's cannot be iterated over


def test_the_code_is_asked_once_and_a_name_belongs_to_whoever_took_it(door: Any, tmp_path: Path) -> None:
    for wrong in ("", "swordfis", "swordfish2", "SWORDFISH", "schwertfisch-ß", THEIRS):
        assert _knock(door, "ada", wrong) == (
            None, "This name is new here, and the class code is missing or wrong; ask your instructor.",
        )  # fmt: skip
    assert _names(tmp_path) == set()
    assert _knock(door, "Ada", f" {CODE} ")[0] == "ada"
    assert _knock(door, "ada")[0] == "ada"
    assert _knock(door, "ada", CODE, "another password") == (None, "This is not the password of that name.")
    assert {file.stat().st_mode & 0o777 for file in tmp_path.glob("passwords*")} == {0o600}


def test_an_instructors_name_takes_a_code_that_learners_do_not_know(door: Any, tmp_path: Path) -> None:
    assert _knock(door, "grace", CODE)[0] is None
    door.instructor_code = ""
    assert _knock(door, "grace", "")[0] is None
    door.instructor_code = THEIRS
    assert _knock(door, "GRACE", THEIRS)[0] == "grace"
    assert _names(tmp_path) == {"grace"}


def test_without_a_code_nobody_new_gets_in(door: Any) -> None:
    door.class_code = ""
    assert _knock(door, "ada", "")[0] is None


def test_only_names_of_the_list(door: Any, tmp_path: Path) -> None:
    door.allow_all, door.allowed_users = False, {"ada"}
    why = "This name is not on the list of the class; ask your instructor."
    assert _knock(door, "eve", CODE) == (None, why)
    assert _names(tmp_path) == set()
    assert _knock(door, "ada", CODE)[0] == "ada"
    assert _knock(door, "grace", THEIRS)[0] == "grace"


NO_NAMES = ["a;rm -rf", "a b", "..", ".", "", "a/b", "a%2fb", "a\n", "a\0", "-a", "_a", "a" * 33, "áda", "a١",
            "ſ", "a$(id)", "a\\b", "a.b", "a'b"]  # fmt: skip


@pytest.mark.parametrize("name", NO_NAMES, ids=ascii)
def test_what_is_no_name_is_refused_and_not_kept(door: Any, tmp_path: Path, name: str) -> None:
    entered, why = _knock(door, name, CODE)
    assert entered is None
    assert why.startswith("A name has up to 32 characters: a to z")
    assert not door.validate_username(name)  # what the hub's API asks
    assert _names(tmp_path) == set()


@pytest.mark.parametrize("password", ["short", "", "x" * 73, "é" * 40, "seven\0 characters"], ids=ascii)
def test_what_is_no_password_is_refused_in_a_sentence(door: Any, tmp_path: Path, password: str) -> None:
    why = "A password has 7 characters or more, and 72 bytes at most."
    assert _knock(door, "ada", CODE, password) == (None, why)
    assert _names(tmp_path) == set()
    assert _knock(door, "ada", CODE)[0] == "ada"
    assert _knock(door, "ada", CODE, password)[0] is None
    assert door.reset_password("ada", password) == why
    assert _knock(door, "ada")[0] == "ada"
    assert "success" in door.reset_password("ada", "the next password")


def test_guesses_are_counted_for_each_address(door: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    login = load("class_login")
    now = [100.0]
    monkeypatch.setattr(login.time, "monotonic", lambda: now[0])
    for n in range(login.MOST_WRONG):
        assert "is missing or wrong" in _knock(door, f"name-{n}", "a guess")[1]
    refused = "30 wrong logins came from your address; wait a minute and try again."
    assert _knock(door, "ada", CODE) == (None, refused)
    assert _knock(door, "ada", CODE, address="10.0.0.8")[0] == "ada"
    now[0] += login.WITHIN_S
    assert _knock(door, "ben", CODE)[0] == "ben"


def test_the_form_asks_for_the_code_and_survives_one_that_expired(door: Any) -> None:
    login = load("class_login")
    (handler,) = [one for path, one in door.get_handlers(None) if path == "/login"]
    assert handler is login.ClassLoginHandler
    form = (HERE / "templates/class_login/login.html").read_text(encoding="utf-8")
    assert 'name="class_code"' in form
    (block,) = re.findall(r"{% block \w+ %}", form)
    theirs = Path(pytest.importorskip("jupyterhub._data").DATA_FILES_PATH) / "templates/login.html"
    assert block in theirs.read_text(encoding="utf-8")


def _door(**settings: str) -> Any:
    return class_door.chosen_door({f"LABCORE_CLASS_{name}": value for name, value in settings.items()})


@pytest.fixture
def tls(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "pem").write_text("certificate and key")
    return {"TLS_CERT": str(tmp_path / "pem"), "TLS_KEY": str(tmp_path / "pem")}


def test_it_listens_on_this_machine_alone_unless_tls_or_a_setting_says_otherwise(tls: dict[str, str]) -> None:
    assert (_door().bind, _door().here_only) == ("http://127.0.0.1:8000", True)
    assert (_door(**tls).bind, _door(**tls).here_only) == ("https://0.0.0.0:8000", False)
    wide = _door(BIND="http://0.0.0.0")
    assert (wide.bind, wide.here_only) == ("http://0.0.0.0:8000", False)
    assert _door(BIND="http://[::1]:80").bind == "http://[::1]:80"
    assert _door(BIND="http://localhost:9000/class").bind == "http://localhost:9000/class"


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"BIND": "nowhere"}, "BIND=nowhere is no address"),
        ({"BIND": "http://h:99999"}, "BIND=http://h:99999 is no address"),
        ({"BIND": "https://0.0.0.0:8000"}, "does not fit: an address begins with https"),
        ({"TLS_CERT": "cert.pem"}, "TLS takes both"),
        ({"TLS_CERT": "no.pem", "TLS_KEY": "no.pem"}, "no.pem cannot be read"),
        ({"SUBDOMAIN_HOST": "http://10.0.0.1"}, "is no address with a name"),
        ({"SUBDOMAIN_HOST": "class.example.org"}, "is no address with a name"),
    ],
)
def test_what_does_not_fit_together_is_said(settings: dict[str, str], why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        _door(**settings)


def test_http_with_a_certificate_does_not_fit(tls: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        _door(BIND="http://0.0.0.0:8000", **tls)


def test_the_invitation_says_how_to_join_and_what_is_open(tls: dict[str, str]) -> None:
    first, *more = class_door.invitation(_door(), CODE).splitlines()
    assert first == (
        "To join: open http://127.0.0.1:8000, choose a name and a password, and give the class code "
        "swordfish (at the first login only)."
    )
    assert more[0].startswith("Only this machine reaches it.")
    assert more[1].startswith("WARNING: all learners share one origin")
    near = class_door.invitation(_door(BIND="https://127.0.0.1:8000", **tls), CODE).splitlines()
    assert near[1] == "Only this machine reaches it, as LABCORE_CLASS_BIND says."
    open_door = _door(BIND="http://0.0.0.0")
    wide = class_door.invitation(open_door, CODE, frozenset(["grace"]), THEIRS).splitlines()
    assert not wide[0].startswith("To join: open http://0.0.0.0")
    assert wide[1] == f"Who sees and ends servers (grace) gives {THEIRS} in place of the class code."
    assert wide[2].startswith("WARNING: without TLS, everybody in this network can read passwords")
    own = class_door.invitation(_door(SUBDOMAIN_HOST="https://class.example.org/", **tls), CODE).splitlines()
    assert len(own) == 1
    assert own[0].startswith("To join: open https://class.example.org, ")


def test_a_code_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "class_code"
    word = class_door.code(file)
    assert re.fullmatch(r"[a-z2-9]{10}", word)
    assert file.stat().st_mode & 0o777 == 0o600
    assert class_door.code(file) == word
    assert class_door.code(file, " swordfish ") == "swordfish"
    assert class_door.code(tmp_path / "other") != word
    file.write_text("\n")
    with pytest.raises(ValueError, match="'' is too easy to guess; give 6 characters"):
        class_door.code(file)
