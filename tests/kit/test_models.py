"""Models in a kit: what was packed loads on a machine without a network, by the name it has."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import labcore
from labcore import catalog
from labcore.errors import HubError, KitError
from labcore.kit import build as building
from labcore.kit import install, manifest, models
from tests.kit.conftest import order

NAME, COMMIT = "someone/tiny-story", "0123456789abcdef0123456789abcdef01234567"


def _hub_cache(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Make a folder the Hub's cache of this process, and of what it starts."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))
    return folder


def _cached(cache: Path) -> None:
    """The embedded draft model as the Hub's client keeps one: blobs, and links to them under a commit."""
    place = cache / f"models--{NAME.replace('/', '--')}"
    for folder in (place / "blobs", place / "refs", place / "snapshots" / COMMIT):
        folder.mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    for path in catalog.embedded("story-draft").iterdir():
        shutil.copy(path, place / "blobs" / path.name)
        (place / "snapshots" / COMMIT / path.name).symlink_to(place / "blobs" / path.name)


def _build(clone: Path, out: Path, *names: str | Path) -> manifest.Manifest:
    return building.build(order(models=list(map(str, names))), out, "labcore kit build", clone=clone)


def test_model_of_the_hub_loads_by_its_name_on_a_machine_that_never_saw_the_hub(
    only_index: None, clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _cached(_hub_cache(monkeypatch, tmp_path / "instructor"))
    made = _build(clone, tmp_path / "kit", NAME, "story")  # the embedded one is there anyway
    assert [(model.name, model.commit) for model in made.models] == [(NAME, COMMIT)]
    assert not [path for path in (tmp_path / "kit").rglob("*") if path.is_symlink()]  # sticks have none
    _hub_cache(monkeypatch, tmp_path / "learner")
    with pytest.raises(HubError):
        labcore.load(NAME)
    install.install(tmp_path / "kit", tmp_path / "lab")
    out = labcore.generate(labcore.load(NAME), "Once upon a time", max_new_tokens=4)
    assert len(out.tokens) == 4
    main = tmp_path / "learner" / "models--someone--tiny-story" / "refs" / "main"
    main.write_text("another")
    said = list(models.place(tmp_path / "kit", made, tmp_path / "lab"))
    assert said == [f"{NAME}: this machine has another version already, which stays the one that loads"]
    assert main.read_text() == "another"


def test_folder_loads_from_the_lab_by_its_path(
    only_index: None, clone: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    own = Path(shutil.copytree(catalog.embedded("story-draft"), tmp_path / "ours" / "my-model"))
    _build(clone, tmp_path / "kit", own)
    install.install(tmp_path / "kit", tmp_path / "lab")
    place = tmp_path / "lab" / "models" / "my-model"
    assert f"my-model loads as {place}" in capfd.readouterr().out
    assert labcore.load(place).num_parameters == labcore.load("story-draft").num_parameters


def test_gguf_file_is_packed_with_the_tokenizer_beside_it(tmp_path: Path) -> None:
    for name in ("tiny.gguf", "tokenizer.json", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    (source,) = models.find([str(tmp_path / "tiny.gguf")])
    assert source.model.folder == "models/tiny"
    assert [path.name for path in source.paths] == ["tiny.gguf", "tokenizer.json"]
    assert models._path_to_load(tmp_path) == tmp_path / "tiny.gguf"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "nothing-here",
            "There is no model or folder 'nothing-here'; give a folder, a .gguf file, or a Hub id",
        ),
        ("shape:llama-3.1-8b", "has random weights, made where it is loaded; leave it out"),
        (".", r"holds no \.safetensors and no \.gguf file"),
    ],
)
def test_what_is_no_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KitError, match=sentence):
        models.find([name])


def test_two_folders_of_one_name_are_refused(tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place / "model").mkdir(parents=True)
        (tmp_path / place / "model" / "model.safetensors").touch()
    with pytest.raises(KitError, match="Two models would both lie in models/model of the kit"):
        models.find([str(tmp_path / place / "model") for place in ("a", "b")])


@pytest.mark.parametrize(
    ("settings", "cache"),
    [
        ({}, ".cache/huggingface/hub"),
        ({"XDG_CACHE_HOME": "{home}/xdg"}, "xdg/huggingface/hub"),
        ({"HF_HOME": "{home}/hf", "XDG_CACHE_HOME": "{home}/xdg"}, "hf/hub"),
        ({"HF_HUB_CACHE": "{home}/models", "HF_HOME": "{home}/hf"}, "models"),
    ],
)
def test_hub_cache_is_where_the_client_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], cache: str
) -> None:
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in settings.items():
        monkeypatch.setenv(name, value.format(home=tmp_path))
    assert models.hub_cache() == tmp_path / cache
