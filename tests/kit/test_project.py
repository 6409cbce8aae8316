"""The project's files arrive whole, and what a learner wrote is never lost."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from labcore.kit import project
from labcore.kit.manifest import Entry

NAMES = ("notebooks/01.ipynb", "labcore/a.py")
# A history: a kit of some version of each file is installed, or the learner writes a text into one.
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("install"), st.tuples(*[st.sampled_from("ABC") for _ in NAMES])),
        st.tuples(st.just("write"), st.tuples(st.sampled_from(NAMES), st.sampled_from("Axyz"))),
    ),
    max_size=8,
)


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _install(place: Path, versions: tuple[str, ...], before: dict[str, str]) -> dict[str, str]:
    source = place / "kit"
    wanted = {name: Entry(1, _sha(version)) for name, version in zip(NAMES, versions, strict=True)}
    for name, version in zip(NAMES, versions, strict=True):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(version)
    project.update(source, place / "lab", wanted, before)
    return {name: entry.sha256 for name, entry in wanted.items()}


@given(STEPS)
def test_no_history_loses_what_the_learner_wrote(steps: list[tuple[str, tuple[str, ...]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place, lab = Path(folder), Path(folder) / "lab"
        before = _install(place, ("A", "A"), {})
        written: dict[str, str] = {}  # the learner's last words, by file
        kit = ("A", "A")
        for kind, values in steps:
            if kind == "write":
                (lab / values[0]).write_text(values[1])
                written[values[0]] = values[1]
            else:
                kit, before = values, _install(place, values, before)
                for name, version in zip(NAMES, kit, strict=True):
                    alive = {path.read_text() for path in (lab / name).parent.iterdir()}
                    mine = written.get(name)
                    # A text that equals some kit's cannot be told from it; all others live on.
                    assert mine is None or mine in "ABC" or mine in alive
                    assert (lab / name).read_text() in (version, mine)


def test_learners_file_is_kept_in_place_where_the_kit_did_not_change_it(tmp_path: Path) -> None:
    before = _install(tmp_path, ("A", "A"), {})
    (tmp_path / "lab" / NAMES[0]).write_text("mine")
    _install(tmp_path, ("A", "B"), before)
    assert (tmp_path / "lab" / NAMES[0]).read_text() == "mine"
    assert (tmp_path / "lab" / NAMES[1]).read_text() == "B"


def test_where_both_changed_the_learners_lies_beside_under_a_free_name(tmp_path: Path) -> None:
    before = _install(tmp_path, ("A", "A"), {})
    for version, text in (("B", "mine"), ("C", "mine again")):
        (tmp_path / "lab" / NAMES[0]).write_text(text)
        before = _install(tmp_path, (version, "A"), before)
    folder = tmp_path / "lab" / "notebooks"
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "01.ipynb": "C",
        "01.yours.ipynb": "mine",
        "01.yours2.ipynb": "mine again",
    }
