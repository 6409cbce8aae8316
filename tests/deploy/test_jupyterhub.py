"""A class on one server: all work or are told to wait, nobody sees another's files, nothing stays."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.deploy.hub import CODE, Hub, free_ports, libraries
from tests.deploy.learner import Learner

LESSON = "02_two_steps.ipynb"
# Learners of the class, and how many of them the server carries at once.
CLASSES = [pytest.param(3, 2, id="three"), pytest.param(10, 4, id="ten", marks=pytest.mark.long)]
SOMEBODY = 71_234  # a user id that nobody has
PROXY = Path(sys.prefix) / "hub/node_modules/configurable-http-proxy"
NO_PROXY = f"{PROXY} is not there; `make test` installs it with npm, which needs a package index"

pytestmark = [
    pytest.mark.slow, pytest.mark.notebook, pytest.mark.timeout(1800), pytest.mark.xdist_group("jupyterhub"),
]  # fmt: skip


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """A folder through which every user may pass, as pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="labcore-class-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def python(root: Path) -> str:
    """A Python that learners may run: this one, or a copy of it where it lies in somebody's home."""
    if os.geteuid() != 0 or _may_run(sys.executable):
        return sys.executable
    copied = _copy_python(root / "python")
    if not _may_run(copied):
        pytest.skip("other users of this machine may not read this clone; move it out of a private folder")
    return copied


def _may_run(python: str) -> bool:
    words, own = [python, "-c", "import labcore, jupyterhub"], {"LD_LIBRARY_PATH": str(libraries(python))}
    try:
        done = subprocess.run(
            words, user=SOMEBODY, group=SOMEBODY, extra_groups=[], cwd="/", env=own, capture_output=True,
        )  # fmt: skip
    except PermissionError:  # not even the interpreter
        return False
    return done.returncode == 0


def _copy_python(into: Path) -> str:
    """The interpreter and its standard library, with the packages of this environment."""
    library = Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix}))
    kept = into / library.relative_to(sys.base_prefix)
    shutil.copytree(library, kept, ignore=shutil.ignore_patterns("test", "site-packages", "__pycache__"))
    for shared in (Path(sys.base_prefix) / "lib").glob("libpython*.so*"):
        shutil.copy2(shared, into / "lib")
    (kept / "site-packages").mkdir()
    packages = sysconfig.get_path("purelib")
    (kept / "site-packages" / "lab.pth").write_text(f"import site; site.addsitedir({packages!r})\n")
    (into / "bin").mkdir()
    return str(shutil.copy2(Path(sys.executable).resolve(), into / "bin" / "python3"))


@pytest.fixture
def hub(root: Path, python: str, at_once: int) -> Iterator[Hub]:
    if not PROXY.exists():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(NO_PROXY)
    first, second, third = free_ports(3)
    shutil.rmtree(root / "class", ignore_errors=True)
    running = Hub(root, python, at_once, (first, second, third))
    running.start()
    try:
        yield running
    finally:
        if running.runs():
            running.stop()


def _arrive(hub: Hub, name: str) -> Learner:
    learner = Learner(hub.address, name)
    assert learner.log_in(f"the password of {name}", CODE) == 302
    learner.get_token()
    return learner


def _take_the_lesson(hub: Hub, name: str) -> tuple[Learner, dict[str, object]]:
    """From the login to the results, as the learner finds them."""
    learner = _arrive(hub, name)
    learner.take_a_place()
    try:
        said = learner.run(LESSON, [*learner.sources(LESSON), _TELL])
    finally:
        learner.leave()
    return learner, json.loads(said)


# After the lesson, in its kernel.
_TELL = """
import json as _json, os as _os, pathlib as _pathlib
import torch as _torch
from labcore.perf import machine as _machine
_saved = _pathlib.Path("~/results/lesson-02.json").expanduser()
print(_json.dumps({
    "results": _json.loads(_saved.read_text()), "uid": _os.getuid(), "threads": _torch.get_num_threads(),
    "memory": _machine.total_memory("cpu"), "scale": session.scale,
}))
"""


@pytest.mark.parametrize(("learners", "at_once"), CLASSES)
def test_a_class_takes_a_lesson_and_nothing_is_left(hub: Hub, learners: int, at_once: int) -> None:
    names = [f"learner-{n}" for n in range(1, learners + 1)]
    with ThreadPoolExecutor(learners) as pool:
        done = list(pool.map(lambda name: _take_the_lesson(hub, name), names))
    for _, told in done:
        results = told["results"]
        assert isinstance(results, dict)
        assert results["lesson"] == "02"
        assert len(results["predictions"]) >= 3
        assert (told["scale"], told["threads"]) == ("quick", 1)
        assert told["memory"] == (3 << 30) - (1 << 28)
    waited = [page for learner, _ in done for page in learner.told_to_wait]
    assert waited
    assert all(
        f"{at_once} learners are at work, which is what this server carries" in page for page in waited
    )
    if os.geteuid() == 0:
        assert len({told["uid"] for _, told in done}) == learners
    check_that_nobody_sees_another(hub, *names[:2])
    assert hub.stop() == []
    assert hub.open_ports() == []


def check_that_nobody_sees_another(hub: Hub, one: str, other: str) -> None:
    """Over the network and on the disk; what is one's own comes through a restart."""
    ada, ben = _arrive(hub, one), _arrive(hub, other)
    assert Learner(hub.address, ada.name).log_in("a guess at the password", CODE) == 403
    assert Learner(hub.address, "stranger").log_in("a password") == 403
    expired = httpx.post(f"{hub.address}/hub/login", data={"username": "stranger"}, trust_env=False)
    assert expired.status_code == 403
    assert f"the class code {CODE} (at the first login only)" in (hub.root / "hub.log").read_text()
    for learner in (ada, ben):
        learner.take_a_place()
    page = {"type": "file", "format": "text", "content": f"private to {ben.name}"}
    ben.api("PUT", f"/user/{ben.name}/api/contents/diary.txt", json=page).raise_for_status()
    diary = f"/user/{ben.name}/api/contents/diary.txt"
    assert ben.api("GET", diary).json()["content"] == page["content"]
    assert ada.api("GET", diary).status_code in (403, 404)
    assert ada.api("GET", f"/hub/api/users/{ben.name}").status_code in (403, 404)
    if os.geteuid() == 0:
        home = hub.root / "class" / "homes" / ben.name
        for place in (
            home / "lessons" / "diary.txt",
            home / "results",
            home.parent,
            hub.root / "class" / "hub",
        ):
            said = ada.run(LESSON, [_TRY.format(place=str(place))])
            assert said.strip() == "PermissionError", place
    ben.leave()
    ben.take_a_place()
    assert ben.api("GET", diary).json()["content"] == page["content"]
    for learner in (ada, ben):
        learner.leave()


_TRY = """
import os
place = {place!r}
try:
    print(os.listdir(place) if os.path.isdir(place) else open(place).read())
except OSError as error:
    print(type(error).__name__)
"""
