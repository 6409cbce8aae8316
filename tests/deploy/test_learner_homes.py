"""A learner who puts links where the hub will look, and starts again: nothing outside the home changes."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.deploy.shipped import START, load

pytest.importorskip("jupyterhub")
class_home, labcore_class = load("class_home"), load("labcore_class")
LearnerSpawner = load("learner_spawner").LearnerSpawner

FIRST = 71_300  # user ids that nobody has
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@dataclass
class Class:
    """A hub's folders and a clone of three lessons, where every user may pass."""

    root: Path

    @property
    def homes(self) -> Path:
        return self.root / "class" / "homes"

    def start(self, name: str, words: str = "id -u") -> subprocess.CompletedProcess[str]:
        """What the hub does for a learner's server, with other words in place of the server."""
        user = SimpleNamespace(name=name, id=1)
        spawner = LearnerSpawner(homes=str(self.homes), user=user, first_uid=FIRST)
        return subprocess.run(
            ["/bin/sh", str(self.root / "lab/deploy/container/start.sh"), "sh", "-c", words],
            preexec_fn=spawner.make_preexec_fn(name), env=spawner.user_env({"PATH": os.defpath}),
            capture_output=True, text=True,
        )  # fmt: skip

    def play(self, name: str, script: str) -> int:
        """What the learner types in a terminal; its exit status."""
        home = self.homes / name
        owner = home.stat().st_uid
        return subprocess.run(
            ["/bin/sh", "-c", script], user=owner, group=owner, extra_groups=[], cwd=home,
            env={"HOME": str(home), "PATH": os.defpath, "ROOT": str(self.root)}, capture_output=True,
        ).returncode  # fmt: skip

    def outside(self, name: str) -> dict[str, tuple[int, int, int, str]]:
        """Everything but that learner's home: owner, group, mode and content."""
        kept = {}
        for path in sorted(self.root.rglob("*")):
            status, home = path.lstat(), self.homes / name
            if home in path.parents or path == home:
                continue
            content = sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(status.st_mode) else ""
            kept[str(path)] = (status.st_uid, status.st_gid, status.st_mode, content)
        return kept


@pytest.fixture
def school() -> Iterator[Class]:
    root = Path(tempfile.mkdtemp(prefix="labcore-homes-"))  # pytest's own folders are closed to others
    root.chmod(0o755)
    lessons, container = root / "lab/notebooks", root / "lab/deploy/container"
    lessons.mkdir(parents=True)
    container.mkdir(parents=True)
    shutil.copy(START, container)
    for name in ("01_first", "02_second", "index"):
        (lessons / f"{name}.ipynb").write_text(f"lesson {name}")
    labcore_class.make_rooms(root / "class")
    for secret in ("class/hub/passwords", "secret"):
        (root / secret).write_text("for root only")
        (root / secret).chmod(0o600)
    yield Class(root)
    shutil.rmtree(root)


ATTACKS = {
    "a lesson is a link to a file of root": 'ln -sf "$ROOT/secret" lessons/index.ipynb',
    "a lesson is a link that leads nowhere, into the hub's folder":
        'ln -sf "$ROOT/class/hub/made" lessons/index.ipynb',
    "a lesson is a link that leads nowhere, into a folder of root": 'ln -sf "$ROOT/made" lessons/index.ipynb',
    "a lesson is a hard link": 'rm lessons/index.ipynb; ln "$ROOT/secret" lessons/index.ipynb',
    "the copy on its way is a link": 'rm lessons/index.ipynb; ln -s "$ROOT/secret" lessons/index.ipynb.part',
    "the lessons are another's home": 'rm -r lessons; ln -s "$ROOT/class/homes/ben" lessons',
    "the lessons are another's lessons": 'rm -r lessons; ln -s "$ROOT/class/homes/ben/lessons" lessons',
    "the lessons are the hub's folder": 'rm -r lessons; ln -s "$ROOT/class/hub" lessons',
    "the lessons are the folder of the homes": 'rm -r lessons; ln -s "$ROOT/class/homes" lessons',
    "the lessons lead nowhere": 'rm -r lessons; ln -s "$ROOT/made" lessons',
    "the lessons are a loop": "rm -r lessons; ln -s lessons lessons",
    "the lessons are a file": "rm -r lessons; echo mine > lessons",
    "the lessons are a pipe": "rm -r lessons; mkfifo lessons",
    "the lessons are closed": "chmod 0 lessons",
    "the home is closed": "chmod 0 .",
}  # fmt: skip


@as_root
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_nothing_outside_a_home_changes_and_the_learner_gets_in_again(school: Class, attack: str) -> None:
    for name in ("ben", "ada"):
        assert school.start(name).returncode == 0
    before, owner = school.outside("ada"), (school.homes / "ada").stat().st_uid
    school.play("ada", attack)
    done = school.start("ada")
    assert school.outside("ada") == before
    assert (done.returncode, done.stdout.strip()) == (0, str(owner)), done.stderr
    assert school.play("ada", "cd lessons && touch new && test -s 02_second.ipynb") == 0
    assert school.outside("ada") == before


@as_root
def test_a_home_cannot_be_replaced_and_a_link_in_its_place_is_refused(school: Class) -> None:
    school.start("ada")
    school.start("ben")
    before = school.outside("ada")
    assert school.play("ada", 'cd .. && mv ada away || rmdir ada || ln -s "$ROOT" eve || mkdir eve') != 0
    assert school.outside("ada") == before
    (school.homes / "eve").symlink_to(school.homes / "ben")
    (school.homes / "fay").write_text("a file")
    (school.homes / "guest").mkdir()
    os.chown(school.homes / "guest", 1000, 1000)
    before = school.outside("ada")
    refused = {"eve": "is no folder that can be used", "fay": "is no folder", "guest": "belongs to user 1000"}
    for name, why in refused.items():
        with pytest.raises(class_home.HomeRefused, match=f"The home of {name} {why}.*; tell who runs"):
            school.start(name)
    assert school.outside("ada") == before


@as_root
def test_a_uid_stays_with_its_home_and_is_given_to_nobody_else(school: Class) -> None:
    """JupyterHub gives the number of a deleted user to the next one."""
    uids = [school.start(name).stdout.strip() for name in ("ada", "ben", "ada", "carl")]
    assert uids == ["71300", "71301", "71300", "71302"]
    shutil.copytree(school.homes / "ben", school.homes / "copy")
    os.chown(school.homes / "copy", FIRST + 1, FIRST + 1)
    with pytest.raises(class_home.HomeRefused, match="Two homes belong to user 71301, one of them ben's"):
        school.start("ben")


@as_root
def test_homes_that_others_may_change_are_refused(school: Class) -> None:
    for change in (lambda: school.homes.chmod(0o777), lambda: os.chown(school.homes, FIRST, FIRST)):
        change()
        with pytest.raises(class_home.HomeRefused, match="Others than the hub may change"):
            school.start("ada")
    with pytest.raises(ValueError, match=rf"homes belongs to user {FIRST}, who could change"):
        labcore_class.make_rooms(school.root / "class")


@as_root
def test_nobody_changes_anothers_entry_of_the_wall(school: Class) -> None:
    entry = school.root / "class/wall/ada.json"
    usual = os.umask(0)
    try:
        assert school.start("ada", f"echo entry > {entry}").returncode == 0
    finally:
        os.umask(usual)
    school.start("ben")
    tries = ["rm -f $W", "mv -f $W $W.old", "mv mine $W", "cp mine $W", "echo x > $W", "echo x >> $W",
             "ln -sf /etc/passwd $W", "chmod 0 $W", "rm -rf ${W%/*}", "mv ${W%/*} away"]  # fmt: skip
    for attack in tries:
        assert school.play("ben", f"echo x > mine; W={entry}; {attack}") != 0, attack
        assert (entry.read_text(), entry.lstat().st_uid) == ("entry\n", FIRST), attack


def test_not_as_root_all_share_the_account(school: Class, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [os.geteuid()]  # the homes are this account's; then an account that is not root's
    monkeypatch.setattr(class_home.os, "geteuid", lambda: answers.pop() if answers else 1234)
    assert class_home.make_home(school.homes, "ada", FIRST) == -1
    home = school.homes / "ada"
    assert (home.stat().st_uid, home.stat().st_mode & 0o7777) == (os.getuid(), 0o700)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../hub", "a\0b"])
def test_a_name_that_is_no_name_of_a_folder(school: Class, name: str) -> None:
    with pytest.raises(class_home.HomeRefused, match="is no name of a folder"):
        class_home.make_home(school.homes, name, FIRST)


def test_the_sentence_is_what_the_learner_reads(school: Class) -> None:
    utils: Any = pytest.importorskip("jupyterhub.utils")
    (school.homes / "ada").write_text("a file")
    with pytest.raises(class_home.HomeRefused) as caught:
        class_home.make_home(school.homes, "ada", FIRST)
    assert utils.format_exception(caught.value, only_jupyterhub=True)[0] == str(caught.value)


def test_a_home_gets_what_is_missing_and_keeps_what_is_there(school: Class) -> None:
    school.start("ada")
    lessons = school.homes / "ada" / "lessons"
    assert {path.name for path in lessons.iterdir()} == {"01_first.ipynb", "02_second.ipynb", "index.ipynb"}
    (lessons / "index.ipynb").write_text("with my answers")
    (school.root / "lab/notebooks/03_new.ipynb").write_text("new")
    school.start("ada")
    assert (lessons / "index.ipynb").read_text() == "with my answers"
    assert (lessons / "03_new.ipynb").read_text() == "new"
    assert (school.homes / "ada").stat().st_mode & 0o777 == 0o700
